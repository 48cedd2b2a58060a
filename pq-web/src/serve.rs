//! Serves a dashboard on a listener of its own.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{ConnectInfo, Request};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use crate::dashboard::Dashboard;

/// The most connections at a time. Further ones wait.
const MAX_CONNECTIONS: usize = 512;

/// How long a client may take to send the head of a request. A connection without a request is closed after this time.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How long requests may take to end after the server was asked to stop.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// The pause after the system refused a connection, for example because the process has too many files open.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

impl Dashboard {
    /// Serves the dashboard until `stop` is ready. Requests in progress then have 10 s to end.
    ///
    /// At most 512 clients are connected at a time, and each has 30 s to send the head of a request.
    ///
    /// # Errors
    ///
    /// An error of kind [`io::ErrorKind::PermissionDenied`] with a [`crate::StartRefused`] if other machines can reach
    /// the listener and the dashboard has no login; the error of a listener without an address.
    pub async fn serve(self, listener: TcpListener, stop: impl Future<Output = ()>) -> io::Result<()> {
        self.access_setting()
            .check_address(listener.local_addr()?)
            .map_err(|refused| io::Error::new(io::ErrorKind::PermissionDenied, refused))?;
        let closing = self.closing();
        let router = TowerToHyperService::new(self.router());
        let connections = GracefulShutdown::new();
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        tokio::pin!(stop);
        loop {
            let (stream, peer, place) = tokio::select! {
                accepted = accept(&listener, &places) => accepted,
                () = &mut stop => break,
            };
            let router = router.clone();
            let service = service_fn(move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(ConnectInfo(peer));
                router.call(request)
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            let connection = connections.watch(connection);
            tokio::spawn(async move {
                // An error concerns this client only, which knows it or has gone.
                let _ = connection.await;
                drop(place);
            });
        }
        drop(listener);
        closing.send_replace(true);
        // Requests that do not end in time are dropped with their connections.
        let _ = timeout(END_TIMEOUT, connections.shutdown()).await;
        Ok(())
    }
}

/// Waits for a place and for a client.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    loop {
        if let Ok(place) = Arc::clone(places).acquire_owned().await {
            match listener.accept().await {
                Ok((stream, peer)) => return (stream, peer, place),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(_) => sleep(ACCEPT_PAUSE).await,
            }
        }
    }
}
