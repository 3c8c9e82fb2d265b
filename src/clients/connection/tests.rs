//! The timer of a connection, with sockets of its own.

use std::os::fd::AsRawFd;

use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
};

use super::*;

fn nobody() -> Arc<ClientInfo> {
    Arc::new(ClientInfo::new(SocketAddr::from(([192, 0, 2, 1], 1)), 80, Arc::default()))
}

async fn silent_peer() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (near, listener.accept().await.unwrap().0)
}

/// Waits until the client has used up its time.
async fn told() {
    poll_fn(|_| if expired(Wait::Header) || expired(Wait::Body) { Poll::Ready(()) } else { Poll::Pending }).await;
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_cut_when_the_time_is_up() {
    let (mut near, _far) = silent_peer().await;
    let began = Instant::now();
    let read = watched(nobody(), async {
        await_response(Some(near.as_raw_fd()), Instant::now(), Duration::from_millis(50));
        let read = near.read_u8().await;
        assert!(late());
        read
    })
    .await;
    assert!(read.is_err() && began.elapsed() >= Duration::from_millis(50));
}

#[tokio::test]
async fn progress_begins_the_wait_anew_and_a_header_ends_it() {
    let (near, _far) = silent_peer().await;
    watched(nobody(), async {
        await_response(Some(near.as_raw_fd()), Instant::now(), Duration::from_millis(80));
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(40)).await;
            extend();
        }
        arrived();
        tokio::time::sleep(Duration::from_millis(120)).await;
        assert!(!late());
    })
    .await;
    assert!(near.peer_addr().is_ok());
}

/// The number of its descriptor may be another socket's by then.
#[tokio::test]
async fn a_peer_that_has_answered_is_not_shut_down_whatever_the_client_does() {
    let (mut near, mut far) = silent_peer().await;
    let limits = Limits { stall_timeout: Duration::from_millis(20), ..Limits::default() };
    let ends = Arc::new(ClientInfo::new(([192, 0, 2, 1], 1).into(), 80, Arc::new(limits)));
    watched(ends, async {
        await_response(Some(near.as_raw_fd()), Instant::now(), Duration::from_millis(30));
        arrived();
        waits();
        told().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    })
    .await;
    tokio::io::AsyncWriteExt::write_all(&mut far, b"x").await.unwrap();
    assert_eq!(near.read_u8().await.unwrap(), b'x');
}

#[tokio::test]
async fn a_client_without_a_request_is_told_of_and_one_with_a_request_is_not() {
    let began = Instant::now();
    watched(nobody(), async {
        await_header(Some(Instant::now() + Duration::from_millis(30)));
        await_header(None);
        tokio::time::sleep(Duration::from_millis(60)).await;
        assert!(!expired(Wait::Header));
        await_header(Some(Instant::now() + Duration::from_millis(40)));
        told().await;
    })
    .await;
    assert!(began.elapsed() >= Duration::from_millis(100));
}

#[tokio::test]
async fn a_client_that_drips_uses_up_its_time_and_one_that_is_quick_enough_does_not() {
    let ends = |rate| {
        let limits = Limits { min_rate: Some(rate), stall_timeout: Duration::from_millis(100), ..Limits::default() };
        Arc::new(ClientInfo::new(([192, 0, 2, 1], 1).into(), 80, Arc::new(limits)))
    };
    let began = Instant::now();
    let drip = |rate| {
        watched(ends(rate), async move {
            for _ in 0..20 {
                waits();
                tokio::select! {
                    () = told() => return true,
                    () = tokio::time::sleep(Duration::from_millis(20)) => moved(10),
                }
            }
            false
        })
    };
    assert!(drip(100_000).await, "a byte every two milliseconds is slower than that");
    assert!(began.elapsed() < Duration::from_millis(300));
    assert!(!drip(10).await);
}
