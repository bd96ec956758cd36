//! Blobs: in ranges, resumed, verified while they stream.
//!
//! ```text
//! large blob ─▶ first range ─ 206 ─▶ the others, several at once, in order ─┐
//!                    └─ 200 ─▶ the whole as one stream ────────────────────┼─▶ hashed ─▶ reader
//! small blob ─▶ the whole ─ broken ─▶ the rest ────────────────────────────┘
//! ```
//!
//! The reader fails at the end if size or digest are not those of the descriptor: whoever writes the bytes
//! away must not commit them before it saw the end. Memory: a few ranges of 4 MiB per blob.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt, TryStreamExt};
use oci::{Descriptor, Digest, Reference};
use reqwest::header::RANGE;
use reqwest::{Method, Response, StatusCode};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;

use crate::Registry;
use crate::error::RegistryError;
use crate::hosts::Endpoint;
use crate::request::{Ask, network, pull_scope, refusal};

/// Told after each part how many bytes have come so far.
pub type Progress = Arc<dyn Fn(u64) + Send + Sync>;

/// Blobs larger than this come in ranges.
const LARGE: u64 = 16 << 20;
/// How large a range is.
const RANGE_BYTES: u64 = 4 << 20;
/// How many ranges of a blob come at once.
const RANGES_AT_ONCE: usize = 4;
/// How often a broken transfer is taken up again without getting anywhere.
const RESUMES: u32 = 5;

type Parts = BoxStream<'static, Result<Bytes, RegistryError>>;

impl Registry {
    /// The bytes of a blob, verified while they are read.
    ///
    /// # Errors
    /// The blob is not there, or nobody may or can give it. What goes wrong later is told by the reader.
    pub async fn fetch_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        progress: Option<Progress>,
    ) -> Result<BlobReader, RegistryError> {
        let mut last = None;
        for endpoint in self.inner.hosts.for_pull(reference.domain())? {
            let blob = Blob {
                registry: self.clone(),
                endpoint,
                repository: reference.path().to_owned(),
                digest: descriptor.digest,
                size: descriptor.size,
            };
            let host = blob.endpoint.host.clone();
            match blob.parts().await {
                Ok(parts) => return Ok(BlobReader::new(parts, descriptor, host, progress)),
                Err(error) => last = Some(error),
            }
        }
        Err(last.expect("the registry itself is always asked"))
    }
}

/// One blob at one endpoint.
#[derive(Clone)]
struct Blob {
    registry: Registry,
    endpoint: Endpoint,
    repository: String,
    digest: Digest,
    size: u64,
}

impl Blob {
    async fn parts(self) -> Result<Parts, RegistryError> {
        let place = self.place().await;
        if self.size <= LARGE {
            let answer = self.get(0, None).await?;
            return Ok(self.whole(answer, place));
        }
        let answer = self.get(0, Some(RANGE_BYTES - 1)).await?;
        if answer.status() != StatusCode::PARTIAL_CONTENT {
            return Ok(self.whole(answer, place));
        }
        let first = self.clone().range(0, RANGE_BYTES - 1, Some(answer)).await?;
        drop(place);
        let starts = (RANGE_BYTES..self.size).step_by(RANGE_BYTES as usize);
        let size = self.size;
        let rest = stream::iter(starts)
            .map(move |start| {
                let blob = self.clone();
                async move {
                    let _place = blob.place().await;
                    blob.clone()
                        .range(start, (start + RANGE_BYTES).min(size) - 1, None)
                        .await
                }
            })
            .buffered(RANGES_AT_ONCE);
        Ok(stream::once(async { Ok(first) }).chain(rest).boxed())
    }

    /// Waits until its host may be asked for one more.
    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        self.registry.inner.hosts.transfer(&self.endpoint.host).await
    }

    fn ask(&self) -> Ask<'_> {
        Ask {
            method: Method::GET,
            repository: &self.repository,
            path: format!("blobs/{}", self.digest),
            scopes: vec![pull_scope(&self.repository)],
            action: format!("fetch {}", self.digest),
        }
    }

    async fn get(&self, start: u64, end: Option<u64>) -> Result<Response, RegistryError> {
        let ask = self.ask();
        let range = match (start, end) {
            (0, None) => None,
            (start, None) => Some(format!("bytes={start}-")),
            (start, Some(end)) => Some(format!("bytes={start}-{end}")),
        };
        let prepare = |request: reqwest::RequestBuilder| match &range {
            Some(range) => request.header(RANGE, range),
            None => request,
        };
        let answer = self.registry.send(&self.endpoint, &ask, prepare).await?;
        if !answer.status().is_success() {
            let what = format!("{}@{}", self.repository, self.digest);
            return Err(refusal(answer, &ask, &self.endpoint.host, &what, false).await);
        }
        Ok(answer)
    }

    /// One range in memory, tried again where it broke off.
    async fn range(self, start: u64, end: u64, answer: Option<Response>) -> Result<Bytes, RegistryError> {
        let wanted = usize::try_from(end - start + 1).expect("a range is a few MiB");
        let mut bytes = Vec::with_capacity(wanted);
        let mut answer = answer;
        let mut failures = 0;
        loop {
            let part = match answer.take() {
                Some(answer) => Ok(answer),
                None => self.get(start + bytes.len() as u64, Some(end)).await,
            };
            let before = bytes.len();
            let fault = match part {
                Ok(part) if part.status() == StatusCode::PARTIAL_CONTENT => {
                    self.collect(part, &mut bytes, wanted).await.err()
                }
                Ok(part) => return Err(self.invalid(format!("a range was answered with {}", part.status()))),
                Err(error) => Some(error),
            };
            match fault {
                None if bytes.len() == wanted => return Ok(bytes.into()),
                None => failures += 1,
                Some(error) if !error.is_temporary() => return Err(error),
                Some(error) => {
                    failures = if bytes.len() > before { 1 } else { failures + 1 };
                    if failures > RESUMES {
                        return Err(error);
                    }
                }
            }
            if failures > RESUMES {
                return Err(self.invalid(format!("a range of {wanted} bytes ended after {}", bytes.len())));
            }
        }
    }

    async fn collect(
        &self,
        answer: Response,
        bytes: &mut Vec<u8>,
        wanted: usize,
    ) -> Result<(), RegistryError> {
        let mut stream = answer.bytes_stream();
        while let Some(part) = stream.next().await {
            let part = part.map_err(|error| network(&self.ask().action, &self.endpoint.host, error))?;
            if bytes.len() + part.len() > wanted {
                return Err(self.invalid("more bytes than were asked for".to_owned()));
            }
            self.count(&part);
            bytes.extend_from_slice(&part);
        }
        Ok(())
    }

    /// The whole blob as one stream, taken up again where it broke off.
    fn whole(self, answer: Response, place: Option<OwnedSemaphorePermit>) -> Parts {
        struct State {
            /// Until the end, or until nobody reads on.
            _place: Option<OwnedSemaphorePermit>,
            blob: Blob,
            stream: BoxStream<'static, reqwest::Result<Bytes>>,
            read: u64,
            failures: u32,
        }
        let stream = answer.bytes_stream().boxed();
        let state = State {
            _place: place,
            blob: self,
            stream,
            read: 0,
            failures: 0,
        };
        stream::try_unfold(state, |mut state| async move {
            loop {
                match state.stream.next().await {
                    Some(Ok(part)) => {
                        state.read += part.len() as u64;
                        state.failures = 0;
                        state.blob.count(&part);
                        return Ok(Some((part, state)));
                    }
                    None if state.read >= state.blob.size => return Ok(None),
                    broken => {
                        state.failures += 1;
                        let error = match broken {
                            Some(Err(error)) => {
                                network(&state.blob.ask().action, &state.blob.endpoint.host, error)
                            }
                            _ => state
                                .blob
                                .invalid(format!("the blob ended after {} bytes", state.read)),
                        };
                        if state.failures > RESUMES {
                            return Err(error);
                        }
                        let answer = state.blob.get(state.read, None).await?;
                        let resumed = state.read == 0 || answer.status() == StatusCode::PARTIAL_CONTENT;
                        if !resumed {
                            return Err(error);
                        }
                        state.stream = answer.bytes_stream().boxed();
                    }
                }
            }
        })
        .boxed()
    }

    fn count(&self, part: &Bytes) {
        self.registry
            .inner
            .counters
            .fetched_bytes
            .fetch_add(part.len() as u64, Ordering::Relaxed);
    }

    fn invalid(&self, reason: String) -> RegistryError {
        RegistryError::Invalid {
            action: self.ask().action,
            host: self.endpoint.host.clone(),
            reason,
        }
    }
}

/// Reads a blob; the end is reached only if size and digest are right.
pub struct BlobReader {
    parts: Parts,
    part: Bytes,
    hash: Sha256,
    read: u64,
    digest: Digest,
    size: u64,
    host: String,
    progress: Option<Progress>,
    is_verified: bool,
}

impl BlobReader {
    fn new(parts: Parts, descriptor: &Descriptor, host: String, progress: Option<Progress>) -> Self {
        Self {
            parts,
            part: Bytes::new(),
            hash: Sha256::new(),
            read: 0,
            digest: descriptor.digest,
            size: descriptor.size,
            host,
            progress,
            is_verified: false,
        }
    }

    /// All of it in memory; for small blobs such as configs.
    ///
    /// # Errors
    /// The transfer failed, the bytes are others, or there are more than `limit`.
    pub async fn read_all(mut self, limit: usize) -> Result<Bytes, RegistryError> {
        let mut bytes = Vec::new();
        while let Some(part) = self.parts_next().await? {
            if bytes.len() + part.len() > limit {
                return Err(self.invalid(format!("more than {limit} bytes")));
            }
            bytes.extend_from_slice(&part);
        }
        Ok(bytes.into())
    }

    async fn parts_next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let next = self.parts.try_next().await?;
        self.take(next)
    }

    /// Hashes a part, or checks everything at the end.
    fn take(&mut self, part: Option<Bytes>) -> Result<Option<Bytes>, RegistryError> {
        let Some(part) = part else {
            if !std::mem::replace(&mut self.is_verified, true) {
                self.verify()?;
            }
            return Ok(None);
        };
        self.read += part.len() as u64;
        if self.read > self.size {
            return Err(self.invalid(format!("more than the {} bytes its descriptor says", self.size)));
        }
        self.hash.update(&part);
        if let Some(progress) = &self.progress {
            progress(self.read);
        }
        Ok(Some(part))
    }

    fn verify(&self) -> Result<(), RegistryError> {
        let found = Digest::from(<[u8; 32]>::from(self.hash.clone().finalize()));
        if self.read != self.size {
            return Err(self.invalid(format!("{} bytes, its descriptor says {}", self.read, self.size)));
        }
        if found != self.digest {
            let (what, host) = ("a blob".to_owned(), self.host.clone());
            return Err(RegistryError::WrongDigest {
                what,
                host,
                expected: self.digest,
                found,
            });
        }
        Ok(())
    }

    fn invalid(&self, reason: String) -> RegistryError {
        RegistryError::Invalid {
            action: format!("fetch {}", self.digest),
            host: self.host.clone(),
            reason,
        }
    }
}

impl AsyncRead for BlobReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.part.is_empty() {
            let next = ready!(Pin::new(&mut self.parts).poll_next(cx)).transpose();
            match next.and_then(|part| self.take(part)).map_err(io::Error::other)? {
                Some(part) => self.part = part,
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.part.len().min(buf.remaining());
        buf.put_slice(&self.part[..count]);
        self.part.advance(count);
        Poll::Ready(Ok(()))
    }
}
