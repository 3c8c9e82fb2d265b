//! The waits of a connection, with sockets of their own.

use std::os::fd::AsRawFd;

use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::metrics::Metrics;

fn connection(limits: Limits) -> Arc<Connection> {
    counted_connection(limits, Arc::new(Metrics::new().unwrap()))
}

fn counted_connection(limits: Limits, metrics: Arc<Metrics>) -> Arc<Connection> {
    let client = ClientInfo::new(SocketAddr::from(([192, 0, 2, 1], 1)), 80, Arc::new(limits));
    Connection::new(Arc::new(client), Arc::new(Rejections::new(metrics, None)))
}

async fn silent_peer() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (near, listener.accept().await.unwrap().0)
}

/// Returns when a wait for the client times out.
async fn expiry(connection: &Connection) {
    let has_expired = || connection.has_expired(Wait::Header) || connection.has_expired(Wait::Body);
    poll_fn(|_| if has_expired() { Poll::Ready(()) } else { Poll::Pending }).await;
}

#[tokio::test]
async fn a_silent_peer_is_shut_down_at_the_response_timeout() {
    let (mut near, _far) = silent_peer().await;
    let began = Instant::now();
    let connection = connection(Limits::default());
    let read = connection
        .watch(async {
            connection.response.begin(Some(near.as_raw_fd()), Instant::now(), Duration::from_millis(50));
            let read = near.read_u8().await;
            assert!(connection.response.has_timed_out());
            read
        })
        .await;
    assert!(read.is_err() && began.elapsed() >= Duration::from_millis(50));
}

#[tokio::test]
async fn progress_starts_the_response_wait_over_and_a_header_ends_it() {
    let (near, _far) = silent_peer().await;
    let connection = connection(Limits::default());
    let request = async {
        connection.response.begin(Some(near.as_raw_fd()), Instant::now(), Duration::from_millis(80));
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(40)).await;
            connection.response.extend();
        }
        connection.response.end();
        tokio::time::sleep(Duration::from_millis(120)).await;
        assert!(!connection.response.has_timed_out());
    };
    connection.watch(request).await;
    assert!(near.peer_addr().is_ok());
}

/// The number of its descriptor may belong to another socket by then.
#[tokio::test]
async fn a_peer_that_has_answered_is_not_shut_down_when_the_client_times_out() {
    let (mut near, mut far) = silent_peer().await;
    let connection = connection(Limits { stall_timeout: Duration::from_millis(20), ..Limits::default() });
    let request = async {
        connection.response.begin(Some(near.as_raw_fd()), Instant::now(), Duration::from_millis(30));
        connection.response.end();
        connection.await_body();
        expiry(&connection).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    connection.watch(request).await;
    tokio::io::AsyncWriteExt::write_all(&mut far, b"x").await.unwrap();
    assert_eq!(near.read_u8().await.unwrap(), b'x');
}

#[tokio::test]
async fn a_client_without_a_request_times_out_and_one_with_a_request_does_not() {
    let began = Instant::now();
    let connection = connection(Limits::default());
    let requests = async {
        connection.await_header(Some(Instant::now() + Duration::from_millis(30)));
        connection.await_header(None);
        tokio::time::sleep(Duration::from_millis(60)).await;
        assert!(!connection.has_expired(Wait::Header));
        connection.await_header(Some(Instant::now() + Duration::from_millis(40)));
        expiry(&connection).await;
    };
    connection.watch(requests).await;
    assert!(began.elapsed() >= Duration::from_millis(100));
}

#[tokio::test]
async fn a_client_that_drips_uses_up_its_time_and_one_that_is_quick_enough_does_not() {
    let drip = async |rate| {
        let limits = Limits { min_rate: Some(rate), stall_timeout: Duration::from_millis(100), ..Limits::default() };
        let connection = connection(limits);
        let body = async {
            for _ in 0..20 {
                connection.await_body();
                tokio::select! {
                    () = expiry(&connection) => return true,
                    () = tokio::time::sleep(Duration::from_millis(20)) => connection.body_arrived(10),
                }
            }
            false
        };
        connection.watch(body).await
    };
    assert!(drip(100_000).await, "a byte every two milliseconds is slower than that");
    assert!(!drip(10).await);
}

/// The state is the same for every holder, in whichever task it runs: Pingora may move a session to another one.
#[tokio::test]
async fn a_holder_in_another_task_sees_and_changes_the_same_state() {
    let metrics = Arc::new(Metrics::new().unwrap());
    let connection = counted_connection(Limits::default(), Arc::clone(&metrics));
    connection.upgrade();
    let other = Arc::clone(&connection);
    tokio::spawn(async move {
        assert!(other.is_upgraded());
        other.reject(Rejection::SlowBody);
        other.reject(Rejection::SlowReader);
    })
    .await
    .unwrap();
    assert_eq!(connection.rejection(), Some(Rejection::SlowBody), "the first reason stays");
    let counts = [Rejection::SlowBody, Rejection::SlowReader]
        .map(|rejection| metrics.rejected.with_label_values(&[&*connection.client.listener, rejection.reason()]).get());
    assert_eq!(counts, [1, 0], "and is counted once");
}
