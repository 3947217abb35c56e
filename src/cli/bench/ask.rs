//! One plain HTTP request on loopback, for talking to the processes of a bench.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// A large load is prepared and run within one request.
const PATIENCE: Duration = Duration::from_secs(900);

/// Method, path, headers and body; answers status and body.
pub async fn ask(
    to: SocketAddr,
    method: http::Method,
    path: &str,
    headers: &[(&str, &str)],
    body: Bytes,
) -> Result<(u16, Bytes), String> {
    let told = |e: &dyn std::fmt::Display| format!("{method} http://{to}{path}: {e}");
    let exchange = async {
        let stream = TcpStream::connect(to).await.map_err(|e| told(&e))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| told(&e))?;
        let connection = tokio::spawn(connection);
        let mut request = http::Request::builder()
            .method(method.clone())
            .uri(path)
            .header("host", to.to_string());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body)).map_err(|e| told(&e))?;
        let answer = sender.send_request(request).await.map_err(|e| told(&e))?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.map_err(|e| told(&e))?;
        connection.abort();
        Ok((status, body.to_bytes()))
    };
    tokio::time::timeout(PATIENCE, exchange)
        .await
        .unwrap_or_else(|_| Err(told(&"no answer in 15 minutes")))
}
