//! Serves a dashboard on a listener of its own.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::dashboard::Dashboard;

/// How long requests may take to end after the server was asked to stop.
const END_TIMEOUT: Duration = Duration::from_secs(10);

impl Dashboard {
    /// Serves the dashboard until `stop` is ready. Requests in progress then have 10 s to end.
    ///
    /// # Errors
    ///
    /// An error of kind [`io::ErrorKind::PermissionDenied`] with a [`crate::StartRefused`] if other machines can reach
    /// the listener and the dashboard has no login; the errors of the listener.
    pub async fn serve(self, listener: TcpListener, stop: impl Future<Output = ()>) -> io::Result<()> {
        self.access_setting()
            .check_address(listener.local_addr()?)
            .map_err(|refused| io::Error::new(io::ErrorKind::PermissionDenied, refused))?;
        let closing = self.closing();
        let (ended, end) = oneshot::channel::<()>();
        let service = self.router().into_make_service_with_connect_info::<SocketAddr>();
        let server = axum::serve(listener, service).with_graceful_shutdown(async move {
            // An error means that the sender was dropped, which ends the server as well.
            let _ = end.await;
        });
        let server = server.into_future();
        tokio::pin!(server);
        tokio::select! {
            served = &mut server => return served,
            () = stop => {}
        }
        closing.send_replace(true);
        drop(ended);
        // Requests that do not end in time are dropped with their connections.
        tokio::time::timeout(END_TIMEOUT, server).await.unwrap_or(Ok(()))
    }
}
