//! The connections of the admin API, each with bounds.
//!
//! The composition root runs [`serve`] on a runtime of its own. `axum::serve` sets no timer and no limit, so that silent connections
//! would take the proxy's descriptors one by one. Nothing here knows a route.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::ConnectInfo,
    http::{Request, Response, StatusCode},
    response::IntoResponse,
};
use http_body_util::{BodyExt, Limited};
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use log::{debug, warn};
use nix::errno::Errno;
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};

/// Connections at a time; further ones wait to be accepted.
const CONNECTIONS: usize = 64;
/// From the first moment of a connection, or the end of an answer, to the end of the next header.
const HEADER: Duration = Duration::from_secs(10);
/// For a whole request body, and how long that is at most.
const BODY: Duration = Duration::from_secs(10);
const BODY_BYTES: usize = 64 * 1024;
/// How long a client may leave an answer unread.
const WRITE: Duration = Duration::from_secs(30);
/// Descriptors that are opened in advance, one of which is closed where a connection could not be accepted for want of one.
const SPARE: usize = 16;
/// After a connection that could not be accepted.
const PAUSE: Duration = Duration::from_millis(50);

/// Answers requests by `router`, for ever.
pub(super) async fn serve(listener: TcpListener, router: Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut spare = Vec::new();
    loop {
        // Kept open for the time when the proxy has used up all others; a second listening descriptor is as good as any.
        while spare.len() < SPARE
            && let Ok(descriptor) = SockRef::from(&listener).try_clone()
        {
            spare.push(descriptor);
        }
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, client)) => {
                let router = router.clone();
                tokio::spawn(async move {
                    connection(stream, client, router).await;
                    drop(place);
                });
            }
            Err(e) if matches!(e.raw_os_error().map(Errno::from_raw), Some(Errno::EMFILE)) && spare.pop().is_some() => {}
            Err(e) => {
                warn!("cannot accept a connection of the admin API error={e}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, client: SocketAddr, router: Router) {
    // The kernel ends a connection whose client does not read.
    if let Err(e) = SockRef::from(&stream).set_tcp_user_timeout(Some(WRITE)) {
        debug!("cannot set TCP_USER_TIMEOUT error={e}");
    }
    let router = TowerToHyperService::new(router);
    let answer = service_fn(|request| {
        let router = router.clone();
        async move { Ok::<_, Infallible>(answer(request, client, &router).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER);
    if let Err(e) = http.serve_connection(TokioIo::new(stream), answer).await {
        debug!("a connection of the admin API has ended client={client} error={e}");
    }
}

/// Reads the whole body, in time, before a handler waits for it.
async fn answer(request: Request<Incoming>, client: SocketAddr, router: &TowerToHyperService<Router>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let body = match timeout(BODY, Limited::new(body, BODY_BYTES).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => return (StatusCode::PAYLOAD_TOO_LARGE, "the body is cut off, or longer than 64 KiB\n").into_response(),
        Err(_) => return (StatusCode::REQUEST_TIMEOUT, "the body did not come in time\n").into_response(),
    };
    let mut request = Request::from_parts(head, Body::from(body));
    request.extensions_mut().insert(ConnectInfo(client));
    match router.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}
