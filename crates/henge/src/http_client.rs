//! A small HTTP/1.1 client for one address: keeps connections alive, and tells a request that was never sent from one
//! whose outcome is unknown.

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;

/// Answers larger than this are refused: the largest are parts of objects.
const ANSWER_BYTES_MAX: usize = 1 << 30;

/// Idle connections kept.
const IDLE_MAX: usize = 4096;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than any node works on a request.
pub const ANSWER_PATIENCE: Duration = Duration::from_secs(60);

pub struct HttpClient {
    /// HOST:PORT.
    address: String,
    /// How long an answer may take.
    patience: Duration,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

#[derive(Debug, Clone)]
pub enum HttpError {
    /// Nobody listened: the request never left.
    NotSent(String),
    /// The connection broke or nothing came back in time: it may or may not have been carried out.
    Unknown(String),
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HttpError::NotSent(why) => write!(f, "no connection: {why}"),
            HttpError::Unknown(why) => write!(f, "no answer: {why}"),
        }
    }
}

impl HttpClient {
    pub fn new(address: &str) -> HttpClient {
        HttpClient::with_patience(address, ANSWER_PATIENCE)
    }

    pub fn with_patience(address: &str, patience: Duration) -> HttpClient {
        HttpClient { address: address.to_owned(), patience, idle: Mutex::new(Vec::new()) }
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// Sends a request, whose `Host` header the caller has set, and waits for the whole answer.
    pub async fn request(&self, request: Request<Full<Bytes>>) -> Result<Answer, HttpError> {
        let mut connection = self.connect().await?;
        let exchange = async {
            let response = connection.send_request(request).await.map_err(unknown)?;
            let (head, body): (_, hyper::body::Incoming) = Response::into_parts(response);
            let body =
                Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|e| HttpError::Unknown(e.to_string()))?;
            Ok(Answer { status: head.status, headers: head.headers, body: body.to_bytes() })
        };
        let answer = tokio::time::timeout(self.patience, exchange)
            .await
            .unwrap_or_else(|_| Err(HttpError::Unknown(format!("nothing for {} s", self.patience.as_secs_f64()))))?;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push(connection);
        }
        Ok(answer)
    }

    /// Sends a request, and hands the answer's body over as it comes, however long; each piece within the client's
    /// patience. The body of an answer that is no success is not handed over.
    pub async fn download(
        &self,
        request: Request<Full<Bytes>>,
        mut take: impl FnMut(Bytes) -> std::io::Result<()>,
    ) -> Result<StatusCode, HttpError> {
        let late = |_| HttpError::Unknown(format!("nothing for {} s", self.patience.as_secs_f64()));
        let mut connection = self.connect().await?;
        let response = connection.send_request(request);
        let response = tokio::time::timeout(self.patience, response).await.map_err(late)?.map_err(unknown)?;
        let (head, mut body): (_, hyper::body::Incoming) = Response::into_parts(response);
        while head.status.is_success() {
            let Some(frame) = tokio::time::timeout(self.patience, body.frame()).await.map_err(late)? else { break };
            if let Ok(piece) = frame.map_err(unknown)?.into_data() {
                take(piece).map_err(|error| HttpError::Unknown(error.to_string()))?;
            }
        }
        Ok(head.status)
    }

    /// A connection that is ready to send: one kept alive, or a new one.
    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, HttpError> {
        loop {
            let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(mut kept) = kept else { break };
            if kept.ready().await.is_ok() {
                return Ok(kept);
            }
        }
        let not_sent = |error: &dyn fmt::Display| HttpError::NotSent(format!("{}: {error}", self.address));
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(&self.address))
            .await
            .map_err(|_| not_sent(&"connecting took too long"))?
            .map_err(|error| not_sent(&error))?;
        stream.set_nodelay(true).map_err(|error| not_sent(&error))?;
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| not_sent(&error))?;
        tokio::spawn(async move {
            // The sender reports what goes wrong.
            let _ = connection.await;
        });
        sender.ready().await.map_err(|error| not_sent(&error))?;
        Ok(sender)
    }
}

fn unknown(error: hyper::Error) -> HttpError {
    if error.is_canceled() {
        // hyper never began to send it.
        return HttpError::NotSent(error.to_string());
    }
    HttpError::Unknown(error.to_string())
}
