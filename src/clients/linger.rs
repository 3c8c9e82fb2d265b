//! Closes a connection whose client may still be sending, so that it can read the response.
//!
//! Closing at once would reset the connection, and the client's system would discard what it has not read.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufWriter},
    time::timeout,
};

use super::{reject::Rejection, socket::Socket};

/// How long a client may take to read an answer to a rejection.
pub(super) const LINGER: Duration = Duration::from_secs(2);
/// The most bytes that are read from it meanwhile.
const LINGER_BYTES: u64 = 1024 * 1024;

/// Sends the HTTP/1 answer to a rejection, and closes the connection.
pub(super) async fn reject(mut socket: BufWriter<Socket>, rejection: Rejection) {
    let Some(answer) = rejection.answer() else { return };
    let sent = async {
        socket.write_all(answer.as_bytes()).await?;
        socket.flush().await
    };
    // A client that does not read is not waited for.
    if matches!(timeout(LINGER, sent).await, Ok(Ok(()))) {
        close(socket).await;
    }
}

/// Ends the response, and reads and discards what the client sends until it closes.
pub(super) async fn close(mut socket: BufWriter<Socket>) {
    let closed = async {
        socket.shutdown().await?;
        tokio::io::copy(&mut socket.take(LINGER_BYTES), &mut tokio::io::sink()).await
    };
    // Errors and timeouts need no reaction: the connection is over.
    drop(timeout(LINGER, closed).await);
}
