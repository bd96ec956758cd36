//! Ops that several builds wait for, whatever becomes of the client that was asked first.
//!
//! ```text
//! call ─▶ session of the first build whose client lives ─▶ op ─┬─▶ answer
//!              ▲                                              └─▶ failure ─▶ is that client gone, and is there another?
//!              └───────────────────────────────────────────────────────────────────── yes ──┘
//! ```
//!
//! What one client did not live to give is asked of the next. A failure while the client lives is the answer for all. It ends:
//! each further try needs a build that waits and has a client of its own.
use crate::Session;
use async_trait::async_trait;
use cache::ImmutableRef;
use oci::Digest;
use solver::{CacheMap, Op, OpContext, OpError};
use std::any::Any;
use std::sync::Arc;

/// An op, asked again for another build when the client it asked is gone.
pub(crate) struct LivingOp(pub(crate) Arc<dyn Op<ImmutableRef>>);

/// Whether a call is worth another try: the client of `used` is gone, and a build of another client waits.
fn has_another(ctx: &OpContext, used: Option<&Arc<Session>>) -> bool {
    let Some(used) = used else {
        return false;
    };
    let is_gone = used.caller().is_gone() && !ctx.cancel.is_cancelled();
    is_gone && Session::of(ctx).is_ok_and(|next| !Arc::ptr_eq(&next, used) && !next.caller().is_gone())
}

/// Notes that the op is called once more.
fn again(ctx: &OpContext, error: &OpError) {
    tracing::info!(vertex = %ctx.vertex.digest, %error, "asked again of another build's client");
}

#[async_trait]
impl Op<ImmutableRef> for LivingOp {
    async fn cache_map(&self, ctx: &OpContext, index: usize) -> Result<(CacheMap, bool), OpError> {
        loop {
            let used = Session::of(ctx).ok();
            match self.0.cache_map(ctx, index).await {
                Err(error) if has_another(ctx, used.as_ref()) => again(ctx, &error),
                answer => return answer,
            }
        }
    }

    async fn content_digest(
        &self,
        ctx: &OpContext,
        input: usize,
        result: &ImmutableRef,
    ) -> Result<Option<Digest>, OpError> {
        self.0.content_digest(ctx, input, result).await
    }

    fn terms(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        self.0.terms()
    }

    fn join(&self, other: &dyn Op<ImmutableRef>) {
        self.0.join(other);
    }

    async fn exec(&self, ctx: &OpContext, inputs: Vec<ImmutableRef>) -> Result<Vec<ImmutableRef>, OpError> {
        loop {
            let used = Session::of(ctx).ok();
            match self.0.exec(ctx, inputs.clone()).await {
                Err(error) if has_another(ctx, used.as_ref()) => again(ctx, &error),
                answer => return answer,
            }
        }
    }

    fn only_waits(&self) -> bool {
        self.0.only_waits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Entitlements;
    use cache::Cache;
    use session::{
        Caller, FileSend, LocalCaller, LocalDir, LocalOptions, LocalRequest, Meter, RegistryCredential,
        Secret, SecretSource, SessionError, SessionId, SshAgent, Upload,
    };
    use solver::progress::VertexInfo;
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Asks for a secret, and gives nothing; says whom it asked.
    #[derive(Default)]
    struct Asks(parking_lot::Mutex<Vec<String>>);

    #[async_trait]
    impl Op<ImmutableRef> for Asks {
        async fn cache_map(&self, _: &OpContext, _: usize) -> Result<(CacheMap, bool), OpError> {
            Err(OpError::internal("not asked"))
        }

        async fn exec(&self, ctx: &OpContext, _: Vec<ImmutableRef>) -> Result<Vec<ImmutableRef>, OpError> {
            let session = Session::of(ctx)?;
            self.0.lock().push(session.caller().id().to_string());
            let asked: Result<Option<Secret>, SessionError> = session.caller().secret("s").await;
            match asked.map_err(OpError::user)? {
                Some(_) => Ok(Vec::new()),
                None => Err(OpError::user("there is no such secret")),
            }
        }
    }

    /// A client that is gone as soon as it is asked for something.
    #[derive(Debug)]
    struct Leaves(SessionId, AtomicBool);

    impl Leaves {
        fn leave<T>(&self) -> Result<T, SessionError> {
            self.1.store(true, Ordering::Relaxed);
            Err(SessionError::Ended {
                session: self.0.clone(),
            })
        }
    }

    #[async_trait]
    impl Caller for Leaves {
        fn id(&self) -> &SessionId {
            &self.0
        }

        fn is_gone(&self) -> bool {
            self.1.load(Ordering::Relaxed)
        }

        async fn local_dir(&self, _: &LocalRequest, _: Meter) -> Result<Option<LocalDir>, SessionError> {
            self.leave()
        }

        fn oci_layout(&self, _: &str) -> Option<PathBuf> {
            None
        }

        async fn blob(&self, _: &str, _: &Digest) -> Result<Option<Upload>, SessionError> {
            self.leave()
        }

        async fn put_blob(&self, _: &str, _: &Digest, _: u64, _: Upload) -> Result<(), SessionError> {
            self.leave()
        }

        async fn secret(&self, _: &str) -> Result<Option<Secret>, SessionError> {
            self.leave()
        }

        async fn ssh_agent(&self, _: &str) -> Result<Option<SshAgent>, SessionError> {
            self.leave()
        }

        async fn credentials(&self, _: &str) -> Result<Option<RegistryCredential>, SessionError> {
            self.leave()
        }

        async fn upload(&self, _: &str) -> Result<Upload, SessionError> {
            self.leave()
        }

        async fn send_file(&self, _: usize) -> Result<Option<FileSend>, SessionError> {
            self.leave()
        }

        async fn send_dir(&self, _: usize, _: &Path, _: Meter) -> Result<bool, SessionError> {
            self.leave()
        }
    }

    struct Scene {
        _folder: tempfile::TempDir,
        cache: Cache,
    }

    impl Scene {
        fn new() -> Scene {
            let folder = tempfile::tempdir().expect("a folder");
            let cache = Cache::open(&folder.path().join("root"), cache::Options::default()).expect("opened");
            Scene {
                _folder: folder,
                cache,
            }
        }

        fn session(&self, caller: Arc<dyn Caller>) -> Arc<Session> {
            Arc::new(Session::new(caller, &self.cache, Entitlements::default()))
        }

        fn leaves(&self) -> Arc<Session> {
            self.session(Arc::new(Leaves(SessionId::new("leaves"), AtomicBool::new(false))))
        }

        /// A client of this process.
        fn here(&self, has_secret: bool) -> Arc<Session> {
            let mut options = LocalOptions::default();
            if has_secret {
                let value = SecretSource::Value(Secret::from("hidden".to_owned()));
                options.secrets.insert("s".into(), value);
            }
            self.session(Arc::new(LocalCaller::new(SessionId::new("here"), options)))
        }
    }

    async fn exec(groups: Vec<Arc<Session>>) -> (Result<(), String>, Vec<String>) {
        let vertex = VertexInfo {
            digest: Digest::of(b"v"),
            inputs: Vec::new(),
            name: "v".into(),
            group: None,
        };
        let groups = groups.into_iter().map(|session| session as solver::Group);
        let ctx = OpContext::detached(vertex, groups.collect());
        let op = Arc::new(Asks::default());
        let answer = LivingOp(op.clone()).exec(&ctx, Vec::new()).await;
        let asked = op.0.lock().clone();
        (answer.map(drop).map_err(|error| error.to_string()), asked)
    }

    #[tokio::test]
    async fn the_client_that_is_left_is_asked() {
        let scene = Scene::new();
        let (answer, asked) = exec(vec![scene.leaves(), scene.here(true)]).await;
        assert_eq!(answer, Ok(()));
        assert_eq!(asked, ["leaves", "here"]);
    }

    #[tokio::test]
    async fn a_living_clients_no_is_the_answer() {
        let scene = Scene::new();
        let (answer, asked) = exec(vec![scene.here(false), scene.here(true)]).await;
        assert_eq!(answer, Err("there is no such secret".into()));
        assert_eq!(asked, ["here"]);
    }

    #[tokio::test]
    async fn where_nobody_is_left_it_fails() {
        let scene = Scene::new();
        let (answer, asked) = exec(vec![scene.leaves(), scene.leaves()]).await;
        assert!(answer.is_err_and(|why| why.contains("leaves")));
        assert_eq!(asked.len(), 2, "{asked:?}");
    }
}
