//! Counts and times the calls of clients: a layer around all services.
//!
//! The time of a call ends when its answer begins: for Solve at the end of the build, for streams when they open.
use super::metrics::Metrics;
use http::{Request, Response};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;
use tower::{Layer, Service};

/// Adds [`Counted`] to services.
#[derive(Clone)]
pub(in crate::daemon) struct CountCalls(pub(in crate::daemon) Arc<Metrics>);

impl<S> Layer<S> for CountCalls {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted {
            inner,
            metrics: self.0.clone(),
        }
    }
}

/// A service whose calls are counted.
#[derive(Clone)]
pub(in crate::daemon) struct Counted<S> {
    inner: S,
    metrics: Arc<Metrics>,
}

impl<S, A, B> Service<Request<A>> for Counted<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let metrics = self.metrics.clone();
        let begun = Instant::now();
        let call = metrics.begin_call(request.uri().path());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            let code = match &answer {
                Ok(answer) => code(answer.headers()),
                Err(_) => INTERNAL,
            };
            call.end(code, begun.elapsed());
            answer
        })
    }
}

const INTERNAL: usize = 13;

/// What the headers say; an answer without is no failure so far.
fn code(headers: &http::HeaderMap) -> usize {
    let status = headers.get("grpc-status").and_then(|status| status.to_str().ok());
    status.and_then(|status| status.parse().ok()).unwrap_or_default()
}
