//! What a frontend answers: refs that are solved when something needs them, and metadata that says what they are.
//!
//! ```text
//! frontend::Answer ─┐
//! wire Result ──────┴─▶ Solved { refs, metadata } ─▶ export::Source
//! ```
use super::builds::Build;
use super::claims::FrontendClaim;
use super::errors::Failure;
use super::left;
use crate::build::metadata::{BASE_CONFIG, CONFIG, EPOCH, PLATFORMS, metadata};
use crate::build::{Scope, caches};
use bytes::Bytes;
use cache::ImmutableRef;
use frontend::Answer;
use keys::CacheKey;
use llb::Definition;
use oci::Platform;
use parking_lot::Mutex;
use serde_json::{Value, json};
use solver::BuiltResult;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::OnceCell;
use tonic::Code;
use worker::export::PlatformResult;

/// A result that is solved at most once, when it is first needed.
#[derive(Debug)]
pub(super) struct LazyRef {
    /// Its name on the wire.
    pub(super) id: String,
    /// What it is the result of.
    pub(super) definition: Definition,
    /// Whose frontend made it.
    pub(super) scope: Arc<Scope>,
    built: Mutex<Arc<OnceCell<BuiltResult<ImmutableRef>>>>,
}

impl LazyRef {
    pub(super) fn new(id: String, definition: Definition, scope: &Arc<Scope>) -> Arc<LazyRef> {
        Arc::new(LazyRef {
            id,
            definition,
            scope: scope.clone(),
            built: Mutex::default(),
        })
    }

    /// Its files; `None` is scratch.
    pub(super) async fn evaluate(&self, build: &Build) -> Result<Option<ImmutableRef>, Failure> {
        Ok(self.built(build).await?.result)
    }

    /// Lets it be solved anew.
    pub(super) fn reset(&self) {
        *self.built.lock() = Arc::default();
    }

    /// Its files and keys.
    async fn built(&self, build: &Build) -> Result<BuiltResult<ImmutableRef>, Failure> {
        let cell = self.built.lock().clone();
        let built = cell.get_or_try_init(|| async {
            let built = match build.job.build(&self.definition).await {
                Err(error) if caches::is_of_store(&error) && build.imports.are_used() => {
                    build.imports.distrust(&build.job, &error);
                    build.job.build(&self.definition).await
                }
                built => built,
            };
            let built = built.map_err(|error| left::explain(build, error, &self.definition))?;
            self.scope.saw(Some(&self.id), &self.definition);
            Ok::<_, Failure>(built)
        });
        Ok(built.await?.clone())
    }
}

/// Refs of a result: one, or one per platform.
#[derive(Clone, Debug)]
pub(super) enum Refs {
    /// One; `None` is scratch.
    One(Option<Arc<LazyRef>>),
    /// By platform id.
    Many(BTreeMap<String, Option<Arc<LazyRef>>>),
}

/// What a frontend answers.
#[derive(Clone, Debug)]
pub(super) struct Solved {
    pub(super) refs: Refs,
    pub(super) metadata: BTreeMap<String, Bytes>,
    /// What is claimed of them, by platform.
    pub(super) claims: BTreeMap<String, Vec<FrontendClaim>>,
}

impl Solved {
    /// A ref alone.
    pub(super) fn of_ref(one: Option<Arc<LazyRef>>) -> Solved {
        Solved {
            refs: Refs::One(one),
            metadata: BTreeMap::new(),
            claims: BTreeMap::new(),
        }
    }

    /// The Dockerfile frontend's answer; `id` names new refs.
    pub(super) fn of_answer(answer: Answer, scope: &Arc<Scope>, mut id: impl FnMut() -> String) -> Solved {
        let metadata = metadata(&answer).into_iter();
        let metadata = metadata.map(|(key, value)| (key, Bytes::from(value))).collect();
        let mut many = BTreeMap::new();
        for platform in answer.platforms {
            let is_scratch = platform.definition.ops.is_empty();
            let one = (!is_scratch).then(|| LazyRef::new(id(), platform.definition, scope));
            many.insert(platform.id, one);
        }
        let refs = match answer.is_multi_platform {
            true => Refs::Many(many),
            false => Refs::One(many.into_values().next().flatten()),
        };
        Solved {
            refs,
            metadata,
            claims: BTreeMap::new(),
        }
    }

    /// All refs.
    pub(super) fn each(&self) -> Vec<Arc<LazyRef>> {
        let mut all: Vec<Arc<LazyRef>> = match &self.refs {
            Refs::One(one) => one.iter().cloned().collect(),
            Refs::Many(many) => many.values().flatten().cloned().collect(),
        };
        let claims = self.claims.values().flatten();
        all.extend(claims.filter_map(|claim| claim.files.clone()));
        all
    }

    /// Every ref that is no scratch, with the id of its platform.
    pub(super) fn by_platform(&self) -> Result<Vec<(String, Arc<LazyRef>)>, Failure> {
        let refs = match &self.refs {
            Refs::One(one) => {
                let named = self.named_platforms()?.into_iter().next();
                let id = named.map_or_else(|| Platform::host().to_string(), |(id, _)| id);
                one.iter().map(|one| (id.clone(), one.clone())).collect()
            }
            Refs::Many(many) => {
                let refs = many
                    .iter()
                    .filter_map(|(id, one)| Some((id.clone(), one.clone()?)));
                refs.collect()
            }
        };
        Ok(refs)
    }

    /// The ref of a platform.
    pub(super) fn of_platform(&self, id: &str) -> Option<&Arc<LazyRef>> {
        match &self.refs {
            Refs::One(one) => one.as_ref(),
            Refs::Many(many) => many.get(id)?.as_ref(),
        }
    }

    /// The platforms of the result, solved, for the exporters, and the keys of each.
    pub(super) async fn platforms(
        &self,
        build: &Build,
    ) -> Result<Vec<(PlatformResult, Vec<CacheKey>)>, Failure> {
        let named = self.named_platforms()?;
        let refs: Vec<(String, Platform, Option<Arc<LazyRef>>)> = match &self.refs {
            Refs::One(one) => {
                let (id, platform) = named.into_iter().next().unwrap_or_else(|| {
                    let host = Platform::host();
                    (host.to_string(), host)
                });
                vec![(id, platform, one.clone())]
            }
            Refs::Many(many) => {
                let found = named.into_iter().map(|(id, platform)| {
                    let one = many
                        .get(&id)
                        .ok_or_else(|| invalid(format!("the result has no ref of platform {id}")))?;
                    Ok((id, platform, one.clone()))
                });
                found.collect::<Result<_, Failure>>()?
            }
        };
        let is_many = matches!(self.refs, Refs::Many(_));
        let solved = refs.into_iter().map(|(id, platform, one)| async move {
            let (result, keys) = match &one {
                Some(one) => {
                    let built = one.built(build).await?;
                    (built.result, built.keys)
                }
                None => (None, Vec::new()),
            };
            let suffix = if is_many { id.as_str() } else { "" };
            let text = |key| {
                self.value(key, suffix)
                    .and_then(|value| std::str::from_utf8(value).ok())
            };
            let config = self.value(CONFIG, suffix).map(|config| config.to_vec());
            let platform = PlatformResult {
                config: config.unwrap_or_else(|| plain_config(&platform)),
                base_config: self.value(BASE_CONFIG, suffix).map(|config| config.to_vec()),
                epoch: text(EPOCH).and_then(|epoch| epoch.parse().ok()),
                attestations: Vec::new(),
                id,
                platform,
                result,
                inline_cache: None,
            };
            Ok::<_, Failure>((platform, keys))
        });
        futures_util::future::try_join_all(solved).await
    }

    /// Whether an index is to be made.
    pub(super) fn is_index(&self) -> bool {
        matches!(self.refs, Refs::Many(_))
    }

    /// A value for a platform: its own, else the one for all.
    fn value(&self, key: &str, platform: &str) -> Option<&Bytes> {
        let own = self.metadata.get(&format!("{key}/{platform}"));
        own.or_else(|| self.metadata.get(key))
    }

    fn named_platforms(&self) -> Result<Vec<(String, Platform)>, Failure> {
        let Some(bytes) = self.metadata.get(PLATFORMS) else {
            return match &self.refs {
                Refs::One(_) => Ok(Vec::new()),
                Refs::Many(many) if many.is_empty() => Ok(Vec::new()),
                Refs::Many(_) => Err(invalid(format!("the result has several refs but no {PLATFORMS}"))),
            };
        };
        let value: Value =
            serde_json::from_slice(bytes).map_err(|error| invalid(format!("{PLATFORMS}: {error}")))?;
        let list = value.get("Platforms").and_then(Value::as_array);
        let list = list.ok_or_else(|| invalid(format!("{PLATFORMS} has no list of platforms")))?;
        list.iter().map(named_platform).collect()
    }
}

fn named_platform(value: &Value) -> Result<(String, Platform), Failure> {
    let id = value
        .get("ID")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    let platform = value.get("Platform").cloned().unwrap_or_default();
    let parsed: Platform = serde_json::from_value(platform)
        .map_err(|error| invalid(format!("platform {id:?} of the result: {error}")))?;
    if parsed.os.is_empty() || parsed.architecture.is_empty() {
        return Err(invalid(format!(
            "platform {id:?} of the result has no os or architecture"
        )));
    }
    Ok((id, parsed))
}

fn platform_json(platform: &Platform) -> Value {
    serde_json::to_value(platform).unwrap_or_default()
}

/// The config of a result that brought none.
fn plain_config(platform: &Platform) -> Vec<u8> {
    let mut config = platform_json(platform);
    config["config"] = json!({
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "WorkingDir": "/",
    });
    config["rootfs"] = json!({"type": "layers", "diff_ids": []});
    config.to_string().into_bytes()
}

fn invalid(message: String) -> Failure {
    Failure::new(Code::Unknown, message)
}
