//! One file from a URL, or the upload of a client (`http://buildkit-session/<id>`).
//!
//! ```text
//! checksum given ─────────────────────────────▶ key (nothing is asked)
//! known from before ─ HEAD, same ETag ────────▶ key
//! else ─ GET ─ hashed while it is kept ───────▶ key            key missed ─▶ layer of that one file
//! ```
//!
//! | in the key | not in it |
//! |---|---|
//! | file name, mode, owner, SHA-256 of the contents, Last-Modified, name of the secret, headers asked for | URL, ETag |
//!
//! What a URL gave last is noted in `<root>/http/<digest of the request>`; the bytes are a blob of the store.

use std::{
    io::Read,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use cache::{Cache, ImmutableRef, RecordInfo, layer::TarLayerWriter};
use futures_util::TryStreamExt;
use llb::{attr, op::SourceOp};
use oci::Digest;
use reqwest::{
    Client, Method, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_DISPOSITION, ETAG, HeaderMap, HeaderName, HeaderValue, LAST_MODIFIED},
};
use serde::{Deserialize, Serialize};
use solver::{CacheMap, Op, OpContext, OpError};
use tokio::{io::AsyncRead, sync::OnceCell};
use tokio_util::io::{StreamReader, SyncIoBridge};
use tree::{Entry, Kind, RootPath, Timestamp};
use url::Url;

use super::checksum::{Algorithm, Checksum};
use super::metadata::HttpMetadata;
use crate::{
    ops::cache_error,
    worker::{Session, Worker},
};

/// The host that stands for an upload of the client.
const SESSION_HOST: &str = "buildkit-session";
/// The most bytes of one file.
const MAX_BYTES: u64 = 16 << 30;
/// How long a server may say nothing.
const STALL: Duration = Duration::from_secs(60);
/// Mode of a file whose op asks for none.
const DEFAULT_MODE: u32 = 0o600;
/// What a file is called that has no name.
const DEFAULT_NAME: &str = "download";
/// Secrets with this and a host behind it are Authorization headers for that host, or bearer tokens.
const HEADER_SECRET: &str = "HTTP_AUTH_HEADER_";
const TOKEN_SECRET: &str = "HTTP_AUTH_TOKEN_";
/// Headers that a definition may ask for.
const HEADERS: [&str; 2] = ["Accept", "User-Agent"];

/// A file that could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The server answered with an error.
    #[error("fetch {url}: invalid response status {status}")]
    Status {
        /// Where, without user info.
        url: String,
        /// The status code.
        status: u16,
    },
    /// The request failed.
    #[error("fetch {url}")]
    Request {
        /// Where, without user info.
        url: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The contents are not those that were asked for.
    #[error("digest mismatch for {url}: {found} (expected: {expected})")]
    Mismatch {
        /// Where, without user info.
        url: String,
        /// What was asked for.
        expected: Checksum,
        /// What came.
        found: Checksum,
    },
    /// A secret that is needed is not offered.
    #[error("secret {0:?} for the request is not offered by the client")]
    NoSecret(String),
}

/// What is known of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    digest: Digest,
    etag: Option<String>,
    last_modified: Option<String>,
    disposition: Option<String>,
}

/// One header of a request, as it enters keys.
#[derive(Clone, Debug, Serialize)]
struct HeaderField {
    #[serde(rename = "Name")]
    name: String,
    #[serde(rename = "Value")]
    value: String,
}

/// The op of `http://` and `https://`.
pub(crate) struct HttpOp {
    worker: Arc<Worker>,
    url: Url,
    checksum: Option<Checksum>,
    filename: Option<String>,
    mode: Option<u32>,
    uid: u32,
    gid: u32,
    secret: Option<String>,
    headers: Vec<HeaderField>,
    known: OnceCell<Known>,
}

impl HttpOp {
    /// The op of an HTTP source.
    pub(crate) fn new(worker: Arc<Worker>, op: &SourceOp) -> Result<HttpOp, OpError> {
        let url = Url::parse(&op.identifier)
            .map_err(|error| OpError::user(format!("URL of an HTTP source: {error}")))?;
        let mut made = HttpOp {
            worker,
            url,
            checksum: None,
            filename: None,
            mode: None,
            uid: 0,
            gid: 0,
            secret: None,
            headers: Vec::new(),
            known: OnceCell::new(),
        };
        for (name, value) in &op.attrs {
            let bad = |what: &str| OpError::user(format!("{name} is {value:?}, which is no {what}"));
            let id = || value.parse::<u32>().map_err(|_| bad("number"));
            match name.as_str() {
                attr::HTTP_CHECKSUM => made.checksum = Some(Checksum::parse(value).map_err(OpError::user)?),
                attr::HTTP_FILENAME => made.filename = Some(value.clone()).filter(|name| !name.is_empty()),
                attr::HTTP_PERM => {
                    let mode = u32::from_str_radix(value.trim_start_matches("0o"), 8).ok();
                    made.mode = Some(
                        mode.filter(|mode| *mode <= 0o7777)
                            .ok_or_else(|| bad("octal mode"))?,
                    );
                }
                attr::HTTP_UID => made.uid = id()?,
                attr::HTTP_GID => made.gid = id()?,
                attr::HTTP_AUTH_HEADER_SECRET => made.secret = Some(value.clone()),
                other => {
                    let Some(header) = other.strip_prefix(attr::HTTP_HEADER_PREFIX) else {
                        return Err(OpError::user(format!(
                            "option {other} of an HTTP source is not supported"
                        )));
                    };
                    // As in the peer, others are left out: they could carry credentials into keys.
                    if let Some(known) = HEADERS.iter().find(|known| known.eq_ignore_ascii_case(header)) {
                        made.headers.push(HeaderField {
                            name: (*known).to_owned(),
                            value: value.clone(),
                        });
                    }
                }
            }
        }
        made.headers.sort_by(|left, right| left.name.cmp(&right.name));
        Ok(made)
    }

    /// For people: without user info and query, either of which may be secret.
    fn shown(&self) -> String {
        let mut url = self.url.clone();
        if !url.username().is_empty() || url.password().is_some() {
            let removed = url.set_username("").and_then(|()| url.set_password(None));
            debug_assert!(removed.is_ok(), "what has user info can be without");
        }
        url.set_query(None);
        url.to_string()
    }

    fn request_error(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> OpError {
        OpError::environment(HttpError::Request {
            url: self.shown(),
            source: source.into(),
        })
    }

    /// Where it is noted what the URL gave last.
    fn note(&self) -> PathBuf {
        let request = format!("{}\0{:?}\0{:?}", self.url, self.secret, self.headers);
        self.worker
            .cache
            .root()
            .join("http")
            .join(&Digest::of(request.as_bytes()).hex()[..32])
    }

    fn name(&self, disposition: Option<&str>) -> String {
        let offered = self
            .filename
            .clone()
            .or_else(|| disposition.and_then(name_of_disposition));
        let last = || {
            let last = self.url.path_segments()?.next_back()?;
            Some(percent_decoded(last))
        };
        let name = offered.or_else(last).unwrap_or_default();
        let name = name.rsplit('/').next().unwrap_or_default();
        let is_name = RootPath::root().child(name.as_bytes()).is_ok() && !name.contains(char::is_control);
        if is_name {
            name.to_owned()
        } else {
            DEFAULT_NAME.to_owned()
        }
    }

    /// What was hashed for the key, as JSON.
    fn key(&self, checksum: &Checksum, known: Option<&Known>) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Key<'a> {
            filename: String,
            perm: u32,
            #[serde(rename = "UID")]
            uid: u32,
            #[serde(rename = "GID")]
            gid: u32,
            checksum: String,
            #[serde(skip_serializing_if = "Option::is_none")]
            last_mod_time: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            auth_header_secret: Option<&'a str>,
            #[serde(skip_serializing_if = "<[_]>::is_empty")]
            header: &'a [HeaderField],
        }
        let key = Key {
            filename: self.name(known.and_then(|known| known.disposition.as_deref())),
            perm: self.mode.unwrap_or(0),
            uid: self.uid,
            gid: self.gid,
            checksum: checksum.to_string(),
            last_mod_time: known.and_then(|known| known.last_modified.as_deref()),
            auth_header_secret: self.secret.as_deref(),
            header: &self.headers,
        };
        // Go's encoder writes these three so.
        let json = serde_json::to_string(&key).expect("strings and numbers are JSON");
        json.replace('&', "\\u0026")
            .replace('<', "\\u003c")
            .replace('>', "\\u003e")
    }

    async fn request(&self, session: &Session, method: Method) -> Result<Response, OpError> {
        let mut headers = HeaderMap::new();
        for field in &self.headers {
            let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(OpError::user)?;
            headers.insert(name, HeaderValue::from_str(&field.value).map_err(OpError::user)?);
        }
        let host = self.url.host_str().unwrap_or_default();
        // Those of the host are offered or not; one that is asked for by name must be. A token wins over a header.
        let wanted = match &self.secret {
            Some(id) => vec![(id.clone(), "", true)],
            None => vec![
                (format!("{HEADER_SECRET}{host}"), "", false),
                (format!("{TOKEN_SECRET}{host}"), "Bearer ", false),
            ],
        };
        for (id, before, is_required) in wanted {
            let secret = match session.caller().secret(&id).await.map_err(OpError::environment)? {
                Some(secret) => secret,
                None if is_required => return Err(OpError::user(HttpError::NoSecret(id))),
                None => continue,
            };
            let mut value = HeaderValue::from_bytes(&[before.as_bytes(), secret.expose()].concat())
                .map_err(|_| OpError::user(format!("secret {id:?} is no value of a header")))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let sent = client()?
            .request(method, self.url.clone())
            .headers(headers)
            .send()
            .await;
        sent.map_err(|error| self.request_error(error.without_url()))
    }

    /// What the URL gave last, if the server says that it still does.
    async fn unchanged(&self, session: &Session) -> Result<Option<Known>, OpError> {
        let Some(known) = read_note(&self.note()) else {
            return Ok(None);
        };
        let Some(etag) = known.etag.clone() else {
            return Ok(None);
        };
        if !self
            .worker
            .cache
            .content()
            .touch(&known.digest)
            .map_err(cache_error)?
        {
            return Ok(None);
        }
        let Ok(response) = self.request(session, Method::HEAD).await else {
            return Ok(None);
        };
        let same = response.status() == StatusCode::OK && text(&response, &ETAG) == Some(etag);
        Ok(same.then_some(known))
    }

    async fn fetch(&self, ctx: &OpContext, session: &Session) -> Result<Known, OpError> {
        if self.url.host_str() == Some(SESSION_HOST) {
            let id = self.url.path().trim_start_matches('/').to_owned();
            let upload = session.caller().upload(&id).await.map_err(OpError::user)?;
            let digest = self.keep(ctx, upload).await?;
            return Ok(Known {
                digest,
                etag: None,
                last_modified: None,
                disposition: None,
            });
        }
        let response = self.request(session, Method::GET).await?;
        if !response.status().is_success() {
            let error = HttpError::Status {
                url: self.shown(),
                status: response.status().as_u16(),
            };
            return Err(OpError::user(error));
        }
        let mut known = Known {
            digest: Digest::from([0; 32]),
            etag: text(&response, &ETAG),
            // Only a time that can be read enters the key, and always in one spelling.
            last_modified: text(&response, &LAST_MODIFIED)
                .and_then(|time| httpdate::parse_http_date(&time).ok())
                .map(httpdate::fmt_http_date),
            disposition: text(&response, &CONTENT_DISPOSITION),
        };
        let body = response
            .bytes_stream()
            .map_err(|error| std::io::Error::other(error.without_url()));
        known.digest = self.keep(ctx, StreamReader::new(body)).await?;
        write_note(&self.note(), &known);
        Ok(known)
    }

    /// Keeps a stream as a blob and checks it.
    async fn keep(&self, ctx: &OpContext, body: impl AsyncRead + Send + 'static) -> Result<Digest, OpError> {
        let content = self.worker.cache.content().clone();
        let body = SyncIoBridge::new(Box::pin(body));
        let mut activity = ctx.progress.begin(self.shown(), "downloading");
        let keeping = tokio::task::spawn_blocking(move || content.put_stream(body.take(MAX_BYTES + 1), None));
        let kept = ctx
            .unless_canceled(keeping)
            .await?
            .map_err(|_| OpError::canceled())?;
        let (found, size) = kept.map_err(|error| match error {
            error @ cache::CacheError::Full { .. } => cache_error(error),
            error => self.request_error(error),
        })?;
        activity.set(size, size);
        if size > MAX_BYTES {
            return Err(self.request_error(format!("the file has more than {MAX_BYTES} bytes")));
        }
        self.check(&found).await?;
        Ok(found)
    }

    /// Refuses contents other than those that are asked for.
    async fn check(&self, kept: &Digest) -> Result<(), OpError> {
        let Some(expected) = self.checksum.clone() else {
            return Ok(());
        };
        let found = match expected.digest() {
            Some(_) => Checksum::from(*kept),
            None => self.sum(kept, expected.algorithm(), Vec::new()).await?,
        };
        if found == expected {
            return Ok(());
        }
        let url = self.shown();
        Err(OpError::user(HttpError::Mismatch { url, expected, found }))
    }

    /// The checksum of a kept file with something behind it.
    async fn sum(&self, kept: &Digest, algorithm: Algorithm, suffix: Vec<u8>) -> Result<Checksum, OpError> {
        let contents = self.worker.cache.content().open(kept).map_err(cache_error)?;
        let summing = tokio::task::spawn_blocking(move || algorithm.sum(contents, &suffix));
        let summed = summing.await.map_err(|_| OpError::canceled())?;
        summed.map_err(OpError::environment)
    }

    /// What the URL gives now. With a checksum nothing is asked, unless another one is `wanted`: of the contents with these
    /// bytes behind them.
    pub(crate) async fn metadata(
        &self,
        ctx: &OpContext,
        wanted: Option<(Algorithm, Vec<u8>)>,
    ) -> Result<HttpMetadata, OpError> {
        if let (Some(checksum), None) = (&self.checksum, &wanted) {
            return Ok(HttpMetadata {
                checksum: checksum.clone(),
                filename: self.name(None),
                last_modified: None,
                wanted: None,
            });
        }
        let known = ctx.unless_canceled(self.known(ctx)).await??.clone();
        self.check(&known.digest).await?;
        let wanted = match wanted {
            Some((algorithm, suffix)) => Some(self.sum(&known.digest, algorithm, suffix).await?),
            None => None,
        };
        let time = known.last_modified.as_deref();
        Ok(HttpMetadata {
            checksum: self.checksum.clone().unwrap_or_else(|| known.digest.into()),
            filename: self.name(known.disposition.as_deref()),
            last_modified: time.and_then(|time| httpdate::parse_http_date(time).ok()),
            wanted,
        })
    }

    async fn known(&self, ctx: &OpContext) -> Result<&Known, OpError> {
        let session = Session::of(ctx)?;
        let finding = async {
            if let Some(known) = self.unchanged(&session).await? {
                return Ok(known);
            }
            self.fetch(ctx, &session).await
        };
        self.known.get_or_try_init(|| finding).await
    }
}

#[async_trait]
impl Op<ImmutableRef> for HttpOp {
    async fn cache_map(&self, ctx: &OpContext, _: usize) -> Result<(CacheMap, bool), OpError> {
        let (key, found) = match &self.checksum {
            Some(checksum) => (self.key(checksum, None), checksum.clone()),
            None => {
                let known = ctx.unless_canceled(self.known(ctx)).await??;
                let checksum = Checksum::from(known.digest);
                (self.key(&checksum, Some(known)), checksum)
            }
        };
        let digest = llb::cache::source_key(&Digest::of(key.as_bytes()).to_string());
        Ok((
            CacheMap {
                digest,
                deps: Vec::new(),
                is_local: false,
                explain: key,
                pin: Some(found.to_string()),
            },
            true,
        ))
    }

    async fn exec(&self, ctx: &OpContext, _: Vec<ImmutableRef>) -> Result<Vec<ImmutableRef>, OpError> {
        let known = ctx.unless_canceled(self.known(ctx)).await??.clone();
        self.check(&known.digest).await?;
        let name = self.name(known.disposition.as_deref());
        let path = RootPath::clean(&name).map_err(OpError::internal)?;
        let mut entry = Entry::new(path, Kind::File, self.mode.unwrap_or(DEFAULT_MODE));
        (entry.uid, entry.gid) = (self.uid, self.gid);
        let modified = known
            .last_modified
            .as_deref()
            .and_then(|time| httpdate::parse_http_date(time).ok());
        entry.mtime = modified.map(Timestamp::from).unwrap_or_default();
        let (cache, info) = (
            self.worker.cache.clone(),
            RecordInfo::new(format!("http url {}", self.shown())),
        );
        let made = tokio::task::spawn_blocking(move || layer_of(&cache, entry, &known.digest, info)).await;
        made.map_err(|_| OpError::canceled())?.map(|made| vec![made])
    }
}

/// The layer of one file, whose contents are a blob.
pub(super) fn layer_of(
    cache: &Cache,
    mut entry: Entry,
    digest: &Digest,
    info: RecordInfo,
) -> Result<ImmutableRef, OpError> {
    let contents = cache.content().open(digest).map_err(cache_error)?;
    entry.size = contents.metadata().map_err(OpError::environment)?.len();
    let mut writer = TarLayerWriter::new(cache.content().ingest().map_err(cache_error)?);
    let failed = |error: cache::layer::LayerError| cache_error(error.into());
    writer.add(&entry, contents).map_err(failed)?;
    let (ingest, layer) = writer.finish().map_err(failed)?;
    cache
        .add_tar_layer(&cache.scratch(), ingest, layer, info)
        .map_err(cache_error)
}

/// The process's client, made when first needed.
fn client() -> Result<Client, OpError> {
    static CLIENT: OnceLock<Client> = OnceLock::new();
    if let Some(client) = CLIENT.get() {
        return Ok(client.clone());
    }
    let made = Client::builder()
        .user_agent(concat!("builder/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(Duration::from_secs(20))
        .read_timeout(STALL)
        .redirect(reqwest::redirect::Policy::limited(10))
        .build()
        .map_err(OpError::environment)?;
    Ok(CLIENT.get_or_init(|| made).clone())
}

fn text(response: &Response, name: &HeaderName) -> Option<String> {
    let value = response.headers().get(name)?.to_str().ok()?.trim();
    (!value.is_empty()).then(|| value.to_owned())
}

/// The file name a server suggests.
fn name_of_disposition(value: &str) -> Option<String> {
    let part = value.split(';').skip(1).map(str::trim).find_map(|part| {
        let (key, value) = part.split_once('=')?;
        key.trim()
            .eq_ignore_ascii_case("filename")
            .then_some(value.trim())
    })?;
    let name = part.trim_matches('"');
    (!name.is_empty() && !name.ends_with('/')).then(|| name.to_owned())
}

fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes
            .get(at + 1..at + 3)
            .and_then(|hex| std::str::from_utf8(hex).ok());
        match (bytes[at], hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn read_note(path: &std::path::Path) -> Option<Known> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Notes what a URL gave. A note that cannot be written only costs a download later.
fn write_note(path: &std::path::Path, known: &Known) {
    let write = || -> std::io::Result<()> {
        let dir = path.parent().unwrap_or_else(|| std::path::Path::new("."));
        std::fs::create_dir_all(dir)?;
        let mut aside = tempfile::NamedTempFile::new_in(dir)?;
        std::io::Write::write_all(&mut aside, &serde_json::to_vec(known)?)?;
        aside.persist(path)?;
        Ok(())
    };
    if let Err(error) = write() {
        tracing::debug!(%error, "what a URL gave is not noted");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_url_and_stay_names() {
        for (value, name) in [
            ("attachment; filename=\"a b.tgz\"", Some("a b.tgz")),
            ("attachment; FileName=x", Some("x")),
            ("attachment", None),
            ("attachment; filename=\"dir/\"", None),
        ] {
            assert_eq!(name_of_disposition(value).as_deref(), name, "{value}");
        }
        assert_eq!(percent_decoded("a%20b%2Fc%zz%"), "a b/c%zz%");
    }
}
