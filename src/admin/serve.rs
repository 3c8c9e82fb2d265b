//! Serves the connections of the admin API with limits on number, time and size.
//!
//! The composition root runs [`serve`] on a separate runtime. `axum::serve` has no timeouts and no connection limit, so idle
//! connections could use up the descriptors of the proxy. Nothing here knows a route.

use std::{convert::Infallible, future, net::SocketAddr, time::Duration};

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
    sync::Notify,
    time::timeout,
};

use super::places::{Place, Places};

/// Maximum of concurrent connections. At the limit, a new one replaces the one that has waited longest for a request.
const CONNECTIONS: usize = 64;
/// Time limit for the first header of a connection. Clients send it at once.
const FIRST_HEADER: Duration = Duration::from_secs(2);
/// Time limit for a further header, from the end of the last response: longer than the interval of a scrape.
const HEADER: Duration = Duration::from_secs(10);
/// Time limit for a request body, and its maximum length.
const BODY: Duration = Duration::from_secs(10);
const BODY_BYTES: usize = 64 * 1024;
/// How long a client may leave a response unread.
const WRITE: Duration = Duration::from_secs(30);
/// Number of reserved descriptors. One is closed when a connection cannot be accepted because none is left.
const SPARE: usize = 16;
/// Delay after a failed accept.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves requests with `router`, forever.
pub(super) async fn serve(listener: TcpListener, router: Router) {
    let places = Places::new(CONNECTIONS);
    let mut spare = Vec::new();
    loop {
        // The reserve for when the proxy has used up all descriptors. Any descriptor will do; this one is always available.
        while spare.len() < SPARE
            && let Ok(descriptor) = SockRef::from(&listener).try_clone()
        {
            spare.push(descriptor);
        }
        match listener.accept().await {
            Ok((stream, client)) => {
                tokio::spawn(connection(stream, client, router.clone(), places.take().await));
                // Lets the connection read a request that is there already, before a next one can replace it.
                tokio::task::yield_now().await;
            }
            Err(e) if matches!(e.raw_os_error().map(Errno::from_raw), Some(Errno::EMFILE)) && spare.pop().is_some() => {}
            Err(e) => {
                warn!("cannot accept a connection of the admin API error={e}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, client: SocketAddr, router: Router, place: Place) {
    // The kernel ends a connection whose client does not read.
    if let Err(e) = SockRef::from(&stream).set_tcp_user_timeout(Some(WRITE)) {
        debug!("cannot set TCP_USER_TIMEOUT error={e}");
    }
    let router = TowerToHyperService::new(router);
    let (place, first_header) = (&place, &Notify::new());
    let answer = service_fn(|request| {
        first_header.notify_one();
        let router = router.clone();
        async move { Ok::<_, Infallible>(answer(request, client, &router, place).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER);
    let no_header = async {
        if timeout(FIRST_HEADER, first_header.notified()).await.is_ok() {
            future::pending::<()>().await;
        }
    };
    tokio::select! {
        biased;
        () = place.closed() => debug!("a connection of the admin API without a request is closed for a new one client={client}"),
        () = no_header => debug!("a connection of the admin API has sent no header in time client={client}"),
        served = http.serve_connection(TokioIo::new(stream), answer) => if let Err(e) = served {
            debug!("a connection of the admin API has ended client={client} error={e}");
        },
    }
}

/// Reads the whole body, in time, before a handler waits for it.
async fn answer(
    request: Request<Incoming>,
    client: SocketAddr,
    router: &TowerToHyperService<Router>,
    place: &Place,
) -> Response<Body> {
    let (head, body) = request.into_parts();
    let body = match timeout(BODY, Limited::new(body, BODY_BYTES).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => return (StatusCode::PAYLOAD_TOO_LARGE, "the body is cut off, or longer than 64 KiB\n").into_response(),
        Err(_) => return (StatusCode::REQUEST_TIMEOUT, "the body did not come in time\n").into_response(),
    };
    let mut request = Request::from_parts(head, Body::from(body));
    request.extensions_mut().insert(ConnectInfo(client));
    place.handle_request();
    let response = router.call(request).await;
    // Before the response is written: a client that does not read it must not keep the place.
    place.wait_for_request();
    match response {
        Ok(response) => response,
        Err(never) => match never {},
    }
}
