//! The Control service: builds, their progress, sessions, workers, disk usage, history.
use super::contexts;
use super::errors::Failure;
use super::imports;
use super::output::Exporter;
use super::policy::Policy;
use super::run::{Request as Solve, Runner};
use super::worker_info::{WorkerInfo, version};
use crate::build::{CacheEntry, Rules};
use crate::history::{Change, ChangeKind, Query, Record, Stamp};
use crate::trace::TraceContext;
use api::control::CacheOptionsEntry;
use api::control::control_server::Control;
use api::control::{
    BuildHistoryEvent, BuildHistoryEventType, BuildHistoryRecord, BuildHistoryRequest, BuildResultInfo,
    BytesMessage, Descriptor, DiskUsageRequest, DiskUsageResponse, InfoRequest, InfoResponse,
    ListWorkersRequest, ListWorkersResponse, PruneRequest, SolveRequest, SolveResponse, StatusRequest,
    StatusResponse, UpdateBuildHistoryRequest, UpdateBuildHistoryResponse, UsageRecord,
};
use api::types::WorkerRecord;
use cache::{Filter, PruneOptions};
use futures_util::{Stream, StreamExt, stream};
use prost::Message;
use session::{Attachment, hand, tunnel};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{BroadcastStream, ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Code, Request, Response, Status, Streaming};

/// How long Status waits for a build to begin.
const STATUS_PATIENCE: Duration = Duration::from_secs(6);
/// How long a build that fails at once waits for its client's session to be open in both directions.
const GREETING: Duration = Duration::from_millis(500);
/// Known values of `CompatibilityVersion`.
const COMPATIBILITY: [i64; 4] = [0, 10, 20, 30];
/// Chunks of a session's tunnel on their way out.
const TUNNEL_QUEUE: usize = 32;
/// The header that tells the daemon's clock.
const CLOCK: &str = "buildkit-current-timestamp";

/// The service.
pub(super) struct ControlService {
    pub(super) runner: Arc<Runner>,
    pub(super) worker: Arc<WorkerInfo>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Control for ControlService {
    type PruneStream = Answers<UsageRecord>;
    type StatusStream = Answers<StatusResponse>;
    type SessionStream = Answers<BytesMessage>;
    type ListenBuildHistoryStream = Answers<BuildHistoryEvent>;

    async fn solve(&self, request: Request<SolveRequest>) -> Result<Response<SolveResponse>, Status> {
        let trace = TraceContext::of(request.metadata());
        let request = request.into_inner();
        let (session, begun) = (request.session.clone(), Instant::now());
        let solved = match solve_of(request, trace) {
            Ok(solve) => self.runner.solve(solve).await,
            Err(failure) => Err(failure),
        };
        if solved.is_err() && !session.is_empty() && begun.elapsed() < GREETING {
            self.runner.sessions.greeted(&session, GREETING).await;
        }
        let exporter_response = solved?;
        Ok(Response::new(SolveResponse { exporter_response }))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<Self::StatusStream>, Status> {
        let id = request.into_inner().r#ref;
        let history = self.runner.history.clone();
        let stored = {
            let (history, id) = (history.clone(), id.clone());
            blocking(move || {
                // Only this one: there may be thousands, and every build is asked about.
                let found = history.exactly(&id).ok();
                found.filter(|record| record.completed.is_some())
            })
            .await?
        };
        let reader = match stored {
            Some(record) => blocking(move || history.log(&record))
                .await?
                .map_err(|error| internal(&error))?,
            None => {
                let log = self.runner.builds.find_log(&id, STATUS_PATIENCE).await;
                log.ok_or_else(|| Status::not_found(format!("no such job {id}")))?
                    .reader()
            }
        };
        let frames = stream::try_unfold(reader, |mut reader| async move {
            let Some(frame) = reader.next().await.map_err(|error| internal(&error))? else {
                return Ok(None);
            };
            let response = StatusResponse::decode(&frame[..]).map_err(|error| internal(&error))?;
            Ok(Some((response, reader)))
        });
        Ok(with_clock(frames.boxed()))
    }

    async fn session(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut attachment = attachment(request.metadata())?;
        attachment.hand = self.hand(&request);
        let token = attachment.hand.as_ref().map(|key| key.token().to_owned());
        let stop = CancellationToken::new();
        let ended = stop.clone();
        let inbound = request
            .into_inner()
            .map(|message| message.map(|message| message.data).map_err(std::io::Error::other));
        let metrics = self.runner.metrics.clone();
        let inbound = inbound.inspect(move |data| {
            metrics.session_received(data.as_ref().map_or(0, |data| data.len()));
        });
        // When the client's half ends its session has ended.
        let inbound = inbound.chain(stream::poll_fn(move |_| {
            ended.cancel();
            std::task::Poll::Ready(None)
        }));
        let (outbound, messages) = mpsc::channel(TUNNEL_QUEUE);
        let channel = tunnel::channel(inbound, outbound).await;
        let channel = channel.map_err(|error| Status::unavailable(format!("open a session: {error}")))?;
        let sessions = self.runner.sessions.clone();
        let closing = self.runner.closing.clone();
        let guard = stop.clone().drop_guard();
        tokio::spawn(async move {
            let id = attachment.id.clone();
            if let Err(error) = sessions.attach(attachment, channel, stop.clone()).await {
                tracing::warn!(%error, session = id, "a session was refused");
                stop.cancel();
            }
            let _ = closing;
        });
        let metrics = self.runner.metrics.clone();
        let messages = ReceiverStream::new(messages).map(move |data| {
            metrics.session_sent(data.len());
            let _until_the_client_goes = &guard;
            Ok(BytesMessage { data })
        });
        let mut answer = Response::new(messages.boxed());
        if let Some(token) = token.and_then(|token| token.parse().ok()) {
            answer.metadata_mut().insert(hand::HEADER, token);
        }
        Ok(answer)
    }

    async fn list_workers(
        &self,
        request: Request<ListWorkersRequest>,
    ) -> Result<Response<ListWorkersResponse>, Status> {
        let (info, worker) = (self.worker.clone(), self.runner.engine.worker.clone());
        let record = blocking(move || info.whole(&worker)).await?;
        let filter = request.into_inner().filter;
        let is_meant = filter.is_empty() || filter.iter().any(|filter| selects(filter, &record));
        let record = is_meant.then_some(record).into_iter().collect();
        Ok(Response::new(ListWorkersResponse { record }))
    }

    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        Ok(Response::new(InfoResponse {
            buildkit_version: Some(version()),
        }))
    }

    async fn disk_usage(
        &self,
        request: Request<DiskUsageRequest>,
    ) -> Result<Response<DiskUsageResponse>, Status> {
        let asked = request.into_inner();
        let filters = filters(&asked.filter)?;
        let age = duration(asked.age_limit);
        let cache = self.runner.engine.cache.clone();
        let received = self.runner.sessions.received().clone();
        let records = blocking(move || {
            let mut records = cache.usage()?;
            records.extend(contexts::records(&received));
            Ok::<_, cache::CacheError>(records)
        })
        .await?
        .map_err(|error| internal(&error))?;
        let now = SystemTime::now();
        let is_old = |record: &cache::UsageRecord| {
            age.is_none_or(|age| now.duration_since(record.last_used).is_ok_and(|idle| idle >= age))
        };
        let record = records
            .iter()
            .filter(|record| filters.is_empty() || filters.iter().any(|filter| filter.matches(record)))
            .filter(|record| is_old(record))
            .map(usage)
            .collect();
        Ok(Response::new(DiskUsageResponse { record }))
    }

    async fn prune(&self, request: Request<PruneRequest>) -> Result<Response<Self::PruneStream>, Status> {
        let asked = request.into_inner();
        let bytes = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
        let options = PruneOptions {
            filters: filters(&asked.filter)?,
            all: asked.all,
            unused_for: duration(asked.keep_duration),
            max_used: bytes(asked.max_used_space),
            reserved: bytes(asked.reserved_space),
            min_free: bytes(asked.min_free_space),
        };
        let cache = self.runner.engine.cache.clone();
        let received = self.runner.sessions.received().clone();
        let removed = blocking(move || {
            let store_bytes = cache.usage()?.iter().map(|record| record.size).sum();
            let mut removed = contexts::prune(&received, &options, store_bytes);
            removed.extend(cache.prune(&options)?);
            Ok::<_, cache::CacheError>(removed)
        })
        .await?
        .map_err(|error| internal(&error))?;
        let records = stream::iter(removed.iter().map(|record| Ok(usage(record))).collect::<Vec<_>>());
        Ok(Response::new(records.boxed()))
    }

    async fn listen_build_history(
        &self,
        request: Request<BuildHistoryRequest>,
    ) -> Result<Response<Self::ListenBuildHistoryStream>, Status> {
        let asked = request.into_inner();
        let limit = usize::try_from(asked.limit)
            .map_err(|_| Status::invalid_argument(format!("invalid limit {}", asked.limit)))?;
        let query = Query::parse(&asked.filter, limit, Stamp::now())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let history = self.runner.history.clone();
        // Heard from before the list is made, so that no build falls between.
        let changes = history.changes();
        let id = asked.r#ref.clone();
        let active_only = asked.active_only;
        let records = blocking(move || match id.as_str() {
            "" => history.list(),
            id => Ok(history.exactly(id).into_iter().collect()),
        });
        let records = records.await?.map_err(|error| internal(&error))?;
        let records = query.choose(records);
        let (running, ended): (Vec<_>, Vec<_>) =
            records.into_iter().partition(|record| record.completed.is_none());
        let mut first: Vec<_> = running
            .iter()
            .map(|record| event(BuildHistoryEventType::Started, record))
            .collect();
        if !active_only {
            first.extend(
                ended
                    .iter()
                    .map(|record| event(BuildHistoryEventType::Complete, record)),
            );
        }
        let first = stream::iter(first.into_iter().map(Ok));
        if asked.early_exit {
            return Ok(with_clock(first.boxed()));
        }
        let closing = self.runner.closing.clone();
        let id = asked.r#ref;
        let live = BroadcastStream::new(changes)
            .take_until(closing.cancelled_owned())
            .filter_map(move |change| {
                let told = match change {
                    Ok(change) => {
                        let is_meant = (id.is_empty() || change.record.id == id)
                            && query.matches(&change.record)
                            && !(active_only && change.kind == ChangeKind::Deleted);
                        is_meant.then(|| Ok(changed(&change)))
                    }
                    Err(tokio_stream::wrappers::errors::BroadcastStreamRecvError::Lagged(missed)) => {
                        Some(Err(Status::data_loss(format!(
                            "{missed} changes of the history came too fast"
                        ))))
                    }
                };
                std::future::ready(told)
            });
        Ok(with_clock(first.chain(live).boxed()))
    }

    async fn update_build_history(
        &self,
        request: Request<UpdateBuildHistoryRequest>,
    ) -> Result<Response<UpdateBuildHistoryResponse>, Status> {
        let asked = request.into_inner();
        let history = self.runner.history.clone();
        if asked.finalize {
            self.runner.traces.finalize(&asked.r#ref).await;
        }
        let done = blocking(move || {
            if asked.delete {
                history.remove(&asked.r#ref)
            } else if asked.finalize {
                history.exactly(&asked.r#ref).map(drop)
            } else {
                history
                    .change(&asked.r#ref, |record| record.is_pinned = asked.pinned)
                    .map(drop)
            }
        });
        done.await?.map_err(|error| match error {
            crate::history::HistoryError::Unknown(_) => Status::not_found(error.to_string()),
            error => Status::unknown(error.to_string()),
        })?;
        Ok(Response::new(UpdateBuildHistoryResponse {}))
    }
}

/// A request of the wire as our own; what this daemon cannot do is refused by name.
fn solve_of(request: SolveRequest, trace: TraceContext) -> Result<Solve, Failure> {
    let unsupported = |what: &str| Failure::new(Code::Unimplemented, format!("{what} is not supported yet"));
    if !COMPATIBILITY.contains(&request.compatibility_version) {
        let message = format!(
            "unsupported compatibility-version {}",
            request.compatibility_version
        );
        return Err(Failure::new(Code::Unknown, message));
    }
    if request.r#ref.is_empty() {
        return Err(Failure::new(Code::InvalidArgument, "the build has no ref"));
    }
    if request.enable_session_exporter {
        return Err(unsupported("an exporter chosen by the session"));
    }
    let rules = Rules::new(request.source_policy.as_slice())
        .map_err(|error| Failure::new(Code::InvalidArgument, error.to_string()))?;
    let cache = request.cache.unwrap_or_default();
    let entry = |entry: CacheOptionsEntry| CacheEntry {
        kind: entry.r#type,
        attrs: entry.attrs,
    };
    // What a client is named by old clients.
    let old = (!cache.export_ref_deprecated.is_empty()).then(|| {
        let mut old = imports::of_name(&cache.export_ref_deprecated);
        old.attrs.extend(cache.export_attrs_deprecated);
        old
    });
    let exports = cache.exports.into_iter().map(entry).chain(old);
    let exports = exports.map(|entry| entry.export());
    let exports = exports.collect::<Result<Vec<_>, _>>()?;
    let old = cache.import_refs_deprecated.iter();
    let old = old.map(|name| imports::of_name(name));
    let imports = cache.imports.into_iter().map(entry).chain(old).collect();
    let mut exporters: Vec<Exporter> = request
        .exporters
        .into_iter()
        .map(|exporter| Exporter {
            kind: exporter.r#type,
            attributes: exporter.attrs,
        })
        .collect();
    if exporters.is_empty() && !request.exporter_deprecated.is_empty() {
        exporters.push(Exporter {
            kind: request.exporter_deprecated,
            attributes: request.exporter_attrs_deprecated,
        });
    }
    exporters.iter().try_for_each(Exporter::check)?;
    Ok(Solve {
        id: request.r#ref,
        session: request.session,
        frontend: request.frontend,
        attributes: request.frontend_attrs,
        definition: request.definition.filter(|definition| !definition.def.is_empty()),
        inputs: request.frontend_inputs,
        exporters,
        entitlements: request.entitlements,
        is_internal: request.internal,
        is_proxied: request.proxy_network,
        policy: Policy {
            rules,
            decider: request.source_policy_session,
        },
        imports,
        trace,
        exports,
    })
}

impl ControlService {
    /// Lets a client of this machine, who asks for it, hand files over.
    fn hand<T>(&self, request: &Request<T>) -> Option<hand::Key> {
        let asked = request.metadata().get(hand::HEADER)?;
        let peer = request.extensions().get::<UdsConnectInfo>()?.peer_cred?;
        let is_known = asked.as_bytes() == hand::VERSION.as_bytes();
        is_known
            .then(|| self.runner.sessions.hands().open(peer.uid()))
            .flatten()
    }
}

/// What a client says in the headers of its session.
fn attachment(headers: &MetadataMap) -> Result<Attachment, Status> {
    let text = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned()
    };
    let id = text("x-docker-expose-session-uuid");
    if id.is_empty() || id.len() > 256 {
        return Err(Status::invalid_argument(
            "the session has no id (x-docker-expose-session-uuid)",
        ));
    }
    let methods = headers.get_all("x-docker-expose-session-grpc-method");
    Ok(Attachment {
        id,
        shared_key: text("x-docker-expose-session-sharedkey"),
        methods: methods
            .iter()
            .filter_map(|value| value.to_str().ok())
            .map(str::to_owned)
            .collect(),
        hand: None,
    })
}

fn with_clock<T>(stream: Answers<T>) -> Response<Answers<T>> {
    let mut response = Response::new(stream);
    if let Ok(now) = Stamp::now().to_string().parse() {
        response.metadata_mut().insert(CLOCK, now);
    }
    response
}

fn changed(change: &Change) -> BuildHistoryEvent {
    let kind = match change.kind {
        ChangeKind::Started => BuildHistoryEventType::Started,
        ChangeKind::Complete => BuildHistoryEventType::Complete,
        ChangeKind::Deleted => BuildHistoryEventType::Deleted,
    };
    event(kind, &change.record)
}

fn event(kind: BuildHistoryEventType, record: &Record) -> BuildHistoryEvent {
    BuildHistoryEvent {
        r#type: kind.into(),
        record: Some(wire_record(record)),
    }
}

fn wire_record(record: &Record) -> BuildHistoryRecord {
    let number = |count: u32| i32::try_from(count).unwrap_or(i32::MAX);
    let mut results = BuildResultInfo::default();
    for (exporter, made) in &record.results {
        if let Some(made) = &made.descriptor {
            results.results.insert(i64::from(*exporter), descriptor(made));
        }
    }
    let stated = |of: &Vec<oci::Descriptor>| of.iter().map(descriptor).collect();
    results.attestations = record.statements.get("").map(stated).unwrap_or_default();
    let of_platforms = record
        .statements
        .iter()
        .filter(|(platform, _)| !platform.is_empty());
    BuildHistoryRecord {
        r#ref: record.id.clone(),
        frontend: record.frontend.clone(),
        frontend_attrs: record.attributes.clone(),
        exporters: record
            .exporters
            .iter()
            .map(|exporter| api::control::Exporter {
                r#type: exporter.kind.clone(),
                attrs: exporter.attributes.clone(),
            })
            .collect(),
        error: record.error.as_ref().map(|error| api::rpc::Status {
            code: error.code,
            message: error.message.clone(),
            details: Vec::new(),
        }),
        created_at: Some(record.created.system_time().into()),
        completed_at: record.completed.map(|time| time.system_time().into()),
        logs: record.log.as_ref().map(descriptor),
        exporter_response: record.response.clone(),
        results: of_platforms
            .map(|(platform, statements)| {
                let of_platform = BuildResultInfo {
                    attestations: stated(statements),
                    ..BuildResultInfo::default()
                };
                (platform.clone(), of_platform)
            })
            .collect(),
        result: Some(results),
        generation: i32::try_from(record.generation).unwrap_or(i32::MAX),
        trace: record.trace.as_ref().map(descriptor),
        pinned: record.is_pinned,
        num_cached_steps: number(record.steps.cached),
        num_total_steps: number(record.steps.total),
        num_completed_steps: number(record.steps.completed),
        external_error: record.external_error.as_ref().map(descriptor),
        num_warnings: number(record.steps.warnings),
    }
}

fn descriptor(of: &oci::Descriptor) -> Descriptor {
    Descriptor {
        media_type: of.media_type.clone(),
        digest: of.digest.to_string(),
        size: i64::try_from(of.size).unwrap_or(i64::MAX),
        annotations: of.annotations.clone(),
    }
}

fn usage(record: &cache::UsageRecord) -> UsageRecord {
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    UsageRecord {
        id: record.id.clone(),
        mutable: record.mutable,
        in_use: record.in_use,
        size: number(record.size),
        created_at: Some(record.created.into()),
        last_used_at: Some(record.last_used.into()),
        usage_count: number(record.usage_count),
        description: record.description.clone(),
        record_type: record.kind.as_str().to_owned(),
        shared: record.shared,
        parents: record.parents.clone(),
        ..UsageRecord::default()
    }
}

fn filters(texts: &[String]) -> Result<Vec<Filter>, Status> {
    let parsed = texts
        .iter()
        .filter(|text| !text.is_empty())
        .map(|text| Filter::parse(text));
    parsed
        .collect::<Result<_, _>>()
        .map_err(|error| Status::invalid_argument(error.to_string()))
}

fn duration(nanos: i64) -> Option<Duration> {
    u64::try_from(nanos)
        .ok()
        .filter(|nanos| *nanos > 0)
        .map(Duration::from_nanos)
}

/// `id==X`, `labels.name==X`, with `=` as well, `!=` and presence; parts between commas must all hold.
fn selects(filter: &str, record: &WorkerRecord) -> bool {
    filter.split(',').all(|part| {
        let (key, test) = match (part.split_once("!="), part.split_once('=')) {
            (Some((key, value)), _) => (key, Some((false, value))),
            (None, Some((key, value))) => (key, Some((true, value.trim_start_matches('=')))),
            (None, None) => (part, None),
        };
        let key = key.trim();
        let value = match key.strip_prefix("labels.") {
            Some(label) => record.labels.get(label.trim_matches('"')),
            None if key == "id" => Some(&record.id),
            None => None,
        };
        match test {
            None => value.is_some(),
            Some((true, wanted)) => value.is_some_and(|value| value == wanted.trim_matches('"')),
            Some((false, wanted)) => value.is_none_or(|value| value != wanted.trim_matches('"')),
        }
    })
}

/// Runs what reads files on a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| internal(&error))
}

pub(super) fn internal(error: &dyn std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}
