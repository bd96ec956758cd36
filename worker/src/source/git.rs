//! A commit of a git repository: by the `git` program, in a clean environment, without hooks and host files.
//!
//! ```text
//! remote, ref ─ ls-remote ─▶ commit ─▶ key            key missed ─ fetch (depth 1) into a shared bare repository
//!                                                                  └▶ checkout aside ─ submodules ─ subdir ─▶ layer
//! ```
//!
//! | in the key | not in it |
//! |---|---|
//! | commit, whether `.git` is kept (then the ref too), subdir, submodules or not, times | remote, credentials |
//!
//! Arguments that come from a definition stand behind `--` or were checked not to begin with `-`. Credentials go to git by
//! its environment, never by its command line, and no URL with user info is shown. Repositories of the file system are no
//! transport, nor are `ext` and submodules over anything but http, https, ssh and git.

mod command;
mod refs;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use base64::Engine as _;
use cache::{Cache, ImmutableRef, RecordInfo, RecordKind, layer::TarLayerWriter};
use llb::{attr, op::SourceOp};
use oci::Digest;
use solver::{CacheMap, Op, OpContext, OpError};
use tokio::sync::OnceCell;
use tree::{Everything, Kind, Root, RootPath, Timestamp, WalkOptions, walk};
use url::Url;

use command::Git;
use refs::{Resolved, choose, is_commit, is_transport};

use super::metadata::GitMetadata;
use crate::{
    ops::cache_error,
    worker::{Session, Worker},
};

/// A repository that could not be had.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// There is no git here.
    #[error("git cannot be run; install it to build from git repositories: {0}")]
    NoGit(std::io::Error),
    /// git failed.
    #[error("failed to {action} {remote}: {said}")]
    Failed {
        /// What was attempted.
        action: &'static str,
        /// The repository, without user info.
        remote: String,
        /// What git said.
        said: String,
    },
    /// No such branch, tag or commit.
    #[error("repository {remote} does not contain ref {reference}")]
    NoRef {
        /// The repository, without user info.
        remote: String,
        /// What was asked for.
        reference: String,
    },
    /// The ref names another commit than was asked for.
    #[error("expected checksum to match {expected}, got {found}")]
    Mismatch {
        /// What was asked for.
        expected: String,
        /// What there is.
        found: String,
    },
    /// The subdirectory is not one.
    #[error("invalid subdir {0}: no such directory in the repository")]
    Subdir(String),
}

/// The op of `git://`.
pub(crate) struct GitOp {
    worker: Arc<Worker>,
    remote: String,
    reference: String,
    subdir: RootPath,
    checksum: Option<String>,
    keep_git_dir: bool,
    skip_submodules: bool,
    commit_times: bool,
    fetch_by_commit: bool,
    token_secret: Option<String>,
    header_secret: Option<String>,
    known_hosts: Option<String>,
    ssh: Option<String>,
    resolved: OnceCell<Resolved>,
}

impl GitOp {
    /// The op of a git source.
    pub(crate) fn new(worker: Arc<Worker>, op: &SourceOp) -> Result<GitOp, OpError> {
        let (place, fragment) = op.rest().split_once('#').unwrap_or((op.rest(), ""));
        let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
        let remote = op
            .attr(attr::GIT_FULL_URL)
            .map_or_else(|| format!("https://{place}"), str::to_owned);
        let remote = remote.split('#').next().unwrap_or_default().to_owned();
        let mut made = GitOp {
            worker,
            remote,
            reference: reference.to_owned(),
            subdir: RootPath::clean(subdir).map_err(OpError::user)?,
            checksum: None,
            keep_git_dir: false,
            skip_submodules: false,
            commit_times: false,
            fetch_by_commit: false,
            token_secret: None,
            header_secret: None,
            known_hosts: None,
            ssh: None,
            resolved: OnceCell::new(),
        };
        for (name, value) in &op.attrs {
            let text = || Some(value.clone()).filter(|value| !value.is_empty());
            let bad = || OpError::user(format!("{name} cannot be {value:?}"));
            let flag = || match value.as_str() {
                "true" | "1" => Ok(true),
                "false" | "0" | "" => Ok(false),
                _ => Err(bad()),
            };
            match name.as_str() {
                attr::GIT_FULL_URL => {}
                attr::GIT_KEEP_DIR => made.keep_git_dir = flag()?,
                attr::GIT_SKIP_SUBMODULES => made.skip_submodules = flag()?,
                attr::GIT_FETCH_BY_COMMIT => made.fetch_by_commit = flag()?,
                attr::GIT_MTIME => {
                    made.commit_times = match value.as_str() {
                        "commit" => true,
                        "checkout" | "" => false,
                        _ => return Err(bad()),
                    }
                }
                attr::GIT_CHECKSUM => {
                    let is_hex = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_hexdigit());
                    made.checksum = if is_hex {
                        Some(value.to_lowercase())
                    } else {
                        return Err(bad());
                    };
                }
                attr::GIT_AUTH_TOKEN_SECRET => made.token_secret = text(),
                attr::GIT_AUTH_HEADER_SECRET => made.header_secret = text(),
                attr::GIT_KNOWN_SSH_HOSTS => made.known_hosts = text(),
                attr::GIT_MOUNT_SSH_SOCK => made.ssh = text(),
                other => {
                    return Err(OpError::user(format!(
                        "option {other} of a git source is not supported"
                    )));
                }
            }
        }
        let is_option = |text: &str| text.starts_with('-');
        let has_control = |text: &str| text.contains(char::is_control);
        for text in [&made.remote, &made.reference] {
            if is_option(text) || has_control(text) {
                return Err(OpError::user(format!(
                    "{text:?} cannot be used as a git remote or ref"
                )));
            }
        }
        if !is_transport(&made.remote) {
            return Err(OpError::user(format!(
                "{} is no git remote over http, https, ssh or git",
                made.shown()
            )));
        }
        Ok(made)
    }

    /// The remote for people: without user info.
    fn shown(&self) -> String {
        match Url::parse(&self.remote) {
            Ok(mut url) if url.password().is_some() || !url.username().is_empty() => {
                let removed = url.set_password(None).and_then(|()| url.set_username(""));
                if removed.is_ok() {
                    url.to_string()
                } else {
                    url.host_str().unwrap_or_default().to_owned()
                }
            }
            _ => self.remote.clone(),
        }
    }

    fn key(&self, resolved: &Resolved) -> String {
        let mut key = resolved.commit.clone();
        if self.keep_git_dir {
            key += ".git";
            if !resolved.reference.is_empty() {
                key += &format!("#{}", resolved.reference);
            }
        }
        if !self.subdir.is_root() {
            key += &format!(":/{}", String::from_utf8_lossy(self.subdir.as_bytes()));
        }
        if self.skip_submodules {
            key += "(skip-submodules)";
        }
        if self.commit_times {
            key += "(mtime=commit)";
        }
        key
    }

    /// The Authorization header for the remote, from the secrets of the client.
    async fn authorization(&self, session: &Session) -> Result<Option<String>, OpError> {
        let host = Url::parse(&self.remote)
            .ok()
            .and_then(|url| url.host_str().map(str::to_owned))
            .unwrap_or_default();
        let named = |secret: &Option<String>, is_token: bool| secret.clone().map(|name| (name, is_token));
        let both = [named(&self.header_secret, false), named(&self.token_secret, true)];
        let with_host = both
            .iter()
            .flatten()
            .map(|(name, is_token)| (format!("{name}.{host}"), *is_token));
        for (name, is_token) in with_host.chain(both.iter().flatten().cloned()) {
            let Some(secret) = session
                .caller()
                .secret(&name)
                .await
                .map_err(OpError::environment)?
            else {
                continue;
            };
            let text = secret
                .expose_text()
                .ok_or_else(|| OpError::user(format!("secret {name:?} is no text")))?;
            let text = text.trim_end();
            if is_token {
                let pair = base64::engine::general_purpose::STANDARD.encode(format!("x-access-token:{text}"));
                return Ok(Some(format!("basic {pair}")));
            }
            return Ok(Some(text.to_owned()));
        }
        Ok(None)
    }

    async fn git(&self, ctx: &OpContext) -> Result<Git, OpError> {
        let session = Session::of(ctx)?;
        let temporary =
            tempfile::tempdir_in(self.worker.cache.root().join("ingest")).map_err(OpError::environment)?;
        let mut ssh = "ssh -F /dev/null".to_owned();
        match &self.known_hosts {
            Some(hosts) => {
                let file = temporary.path().join("known_hosts");
                fs::write(&file, hosts).map_err(OpError::environment)?;
                ssh += &format!(" -o UserKnownHostsFile='{}'", file.display());
            }
            None => ssh += " -o StrictHostKeyChecking=no",
        }
        let mut environment = vec![("GIT_SSH_COMMAND".to_owned(), ssh.into())];
        let mut forwarded = None;
        if let Some(id) = &self.ssh {
            let agent = session
                .caller()
                .ssh_agent(id)
                .await
                .map_err(OpError::environment)?;
            let agent =
                agent.ok_or_else(|| OpError::user(format!("no SSH key {id:?} forwarded from the client")))?;
            environment.push(("SSH_AUTH_SOCK".to_owned(), agent.socket().as_os_str().to_owned()));
            forwarded = Some(agent);
        }
        if let Some(header) = self.authorization(&session).await? {
            let scope = Url::parse(&self.remote).map_err(OpError::user)?;
            let scope = format!("{}/", scope.origin().ascii_serialization());
            environment.push(("GIT_CONFIG_COUNT".to_owned(), "1".into()));
            environment.push((
                "GIT_CONFIG_KEY_0".to_owned(),
                format!("http.{scope}.extraheader").into(),
            ));
            environment.push((
                "GIT_CONFIG_VALUE_0".to_owned(),
                format!("Authorization: {header}").into(),
            ));
        }
        Ok(Git {
            environment,
            ctx: ctx.clone(),
            remote: self.shown(),
            temporary,
            _agent: forwarded,
        })
    }

    async fn resolve(&self, ctx: &OpContext) -> Result<Resolved, OpError> {
        let mismatch = |found: &str| {
            let expected = self.checksum.clone().unwrap_or_default();
            OpError::user(GitError::Mismatch {
                expected,
                found: found.to_owned(),
            })
        };
        let matches = |commit: &str| {
            self.checksum
                .as_ref()
                .is_none_or(|wanted| commit.starts_with(wanted.as_str()))
        };
        if is_commit(&self.reference) {
            let commit = self.reference.to_lowercase();
            if !matches(&commit) {
                return Err(mismatch(&commit));
            }
            return Ok(Resolved {
                object: commit.clone(),
                reference: commit.clone(),
                commit,
            });
        }
        if let Some(commit) = self
            .checksum
            .as_ref()
            .filter(|wanted| self.fetch_by_commit && is_commit(wanted))
        {
            return Ok(Resolved {
                object: commit.clone(),
                reference: self.reference.clone(),
                commit: commit.clone(),
            });
        }
        let git = self.git(ctx).await?;
        let listed = match self.reference.as_str() {
            "" => {
                git.run(
                    "fetch remote",
                    None,
                    &["ls-remote", "--symref", "--", &self.remote, "HEAD"],
                )
                .await?
            }
            name => {
                let peeled = format!("{name}^{{}}");
                git.run(
                    "fetch remote",
                    None,
                    &["ls-remote", "--", &self.remote, name, &peeled],
                )
                .await?
            }
        };
        let found = choose(&listed, &self.reference)
            .filter(|found| is_commit(&found.object) && is_commit(&found.commit));
        let mut found = found.ok_or_else(|| {
            let reference = if self.reference.is_empty() {
                "HEAD"
            } else {
                &self.reference
            };
            OpError::user(GitError::NoRef {
                remote: self.shown(),
                reference: reference.to_owned(),
            })
        })?;
        if !matches(&found.object) && !matches(&found.commit) {
            return Err(mismatch(&found.commit));
        }
        if self.keep_git_dir {
            found.commit.clone_from(&found.object); // the tag object is kept then, so it counts
        }
        Ok(found)
    }

    /// What the ref names now, and the objects themselves if they are wanted.
    pub(crate) async fn metadata(&self, ctx: &OpContext, with_objects: bool) -> Result<GitMetadata, OpError> {
        let resolved = self.resolved(ctx).await?.clone();
        let is_tag = resolved.commit != resolved.object;
        let mut found = GitMetadata {
            object: resolved.object.clone(),
            reference: resolved.reference.clone(),
            commit: is_tag.then(|| resolved.commit.clone()),
            ..GitMetadata::default()
        };
        if !with_objects {
            return Ok(found);
        }
        let git = self.git(ctx).await?;
        let (bare, _lock) = self.shared(&git).await?;
        self.fetch(&git, &bare, &resolved).await?;
        let look = async |args: &[&str]| git.run("look into", Some(&bare), args).await;
        // An object that was asked for by its name may be either.
        let kind = look(&["cat-file", "-t", &resolved.object]).await?;
        found.commit = None;
        if kind.trim() == "tag" {
            let peeled = format!("{}^{{commit}}", resolved.object);
            found.commit = Some(look(&["rev-parse", &peeled]).await?.trim().to_owned());
            found.tag_object = look(&["cat-file", "tag", &resolved.object]).await?.into_bytes();
        }
        let commit = found.commit.as_ref().unwrap_or(&resolved.object);
        found.commit_object = look(&["cat-file", "commit", commit]).await?.into_bytes();
        Ok(found)
    }

    async fn resolved(&self, ctx: &OpContext) -> Result<&Resolved, OpError> {
        self.resolved.get_or_try_init(|| self.resolve(ctx)).await
    }

    /// The bare repository that all builds fetch this remote into, locked until the guard is dropped.
    async fn shared(&self, git: &Git) -> Result<(PathBuf, fs::File), OpError> {
        let name = Digest::of(self.remote.as_bytes()).hex();
        let folder = self.worker.cache.root().join("git").join(&name[..32]);
        fs::create_dir_all(&folder).map_err(OpError::environment)?;
        let lock = fs::File::create(folder.join("builder.lock")).map_err(OpError::environment)?;
        let locking = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock));
        let lock = git
            .ctx
            .unless_canceled(locking)
            .await?
            .map_err(|_| OpError::canceled())?;
        let lock = lock.map_err(OpError::environment)?;
        let bare = folder.join("repo");
        if !bare.join("HEAD").exists() {
            git.run(
                "set up",
                None,
                &["init", "--quiet", "--bare", "--template=", "--", &text_of(&bare)?],
            )
            .await?;
        }
        // Left by a git that was killed; we hold the lock now.
        for stale in ["shallow.lock", "index.lock"] {
            let path = bare.join(stale);
            if path.exists() {
                fs::remove_file(path).map_err(OpError::environment)?;
            }
        }
        Ok((bare, lock))
    }

    async fn fetch(&self, git: &Git, bare: &Path, resolved: &Resolved) -> Result<(), OpError> {
        let object = &resolved.object;
        let present = format!("{object}^{{commit}}");
        if git
            .run("look into", Some(bare), &["cat-file", "-e", &present])
            .await
            .is_ok()
        {
            return Ok(());
        }
        let by_name =
            (!is_commit(&resolved.reference) && !self.fetch_by_commit).then_some(&resolved.reference);
        let mut failed = None;
        // By name first, as every server allows that; by commit if the ref moved on meanwhile; everything from a server that
        // gives no single commits.
        for wanted in by_name.into_iter().chain([object]) {
            let shallow = [
                "fetch",
                "--quiet",
                "--no-tags",
                "--force",
                "--depth=1",
                "--",
                &self.remote,
                wanted,
            ];
            match git.run("fetch remote", Some(bare), &shallow).await {
                Ok(_)
                    if git
                        .run("look into", Some(bare), &["cat-file", "-e", &present])
                        .await
                        .is_ok() =>
                {
                    return Ok(());
                }
                Ok(_) => {}
                Err(error) if error.is_canceled() => return Err(error),
                Err(error) => failed = Some(error),
            }
        }
        let refs = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"];
        let all = [
            "fetch",
            "--quiet",
            "--force",
            "--",
            &self.remote,
            refs[0],
            refs[1],
        ];
        let fetched = git.run("fetch remote", Some(bare), &all).await;
        fetched.map_err(|error| failed.unwrap_or(error))?;
        git.run("look into", Some(bare), &["cat-file", "-e", &present])
            .await
            .map_err(|_| {
                OpError::user(GitError::NoRef {
                    remote: self.shown(),
                    reference: object.clone(),
                })
            })?;
        Ok(())
    }

    async fn checkout(&self, git: &Git, bare: &Path, resolved: &Resolved) -> Result<PathBuf, OpError> {
        let work = git.temporary.path().join("work");
        fs::create_dir(&work).map_err(OpError::environment)?;
        let at = text_of(&work)?;
        let own = work.join(".git");
        // A repository of its own, so that builds at once do not share an index. Objects come by the shared one's path.
        git.run("set up", None, &["init", "--quiet", "--template=", "--", &at])
            .await?;
        let from = text_of(bare)?;
        let reference = "refs/builder/fetch";
        git.run(
            "look into",
            Some(bare),
            &["update-ref", reference, &resolved.object],
        )
        .await?;
        let allow = "protocol.file.allow=always";
        let copy = [
            "-c",
            allow,
            "fetch",
            "--quiet",
            "--no-tags",
            "--depth=1",
            "-u",
            "--",
            &from,
            reference,
        ];
        git.run("check out", Some(&own), &copy).await?;
        let mut args = vec!["--work-tree", &at, "checkout", "--quiet", "--force"];
        let branch = resolved
            .reference
            .strip_prefix("refs/heads/")
            .filter(|_| self.keep_git_dir);
        if let Some(branch) = branch {
            args.extend(["-B", branch]);
        } else {
            args.push("--detach");
        }
        args.push("FETCH_HEAD");
        git.run("check out", Some(&own), &args).await?;
        if let Some(tag) = resolved
            .reference
            .strip_prefix("refs/tags/")
            .filter(|_| self.keep_git_dir)
        {
            let full = format!("refs/tags/{tag}");
            git.run("check out", Some(&own), &["update-ref", &full, &resolved.object])
                .await?;
        }
        let shown = self.shown();
        git.run(
            "check out",
            Some(&own),
            &["remote", "add", "--", "origin", &shown],
        )
        .await?;
        if !self.skip_submodules && work.join(".gitmodules").exists() {
            let update = [
                "--work-tree",
                &at,
                "submodule",
                "--quiet",
                "update",
                "--init",
                "--recursive",
                "--depth=1",
            ];
            git.run_in("update submodules of", Some(&own), Some(&work), &update)
                .await?;
        }
        if self.keep_git_dir {
            git.run(
                "check out",
                Some(&own),
                &["reflog", "expire", "--all", "--expire=now"],
            )
            .await?;
            remove_if_there(&own.join("FETCH_HEAD"))?;
        } else {
            Root::open(&work)
                .and_then(|root| root.remove_all(&RootPath::root().child(b".git").expect("a name")))
                .map_err(OpError::environment)?;
        }
        Ok(work)
    }
}

fn remove_if_there(path: &Path) -> Result<(), OpError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(OpError::environment(error)),
        _ => Ok(()),
    }
}

fn text_of(path: &Path) -> Result<String, OpError> {
    let text = path
        .to_str()
        .ok_or_else(|| OpError::environment(format!("{} is no UTF-8 path", path.display())))?;
    Ok(text.to_owned())
}

#[async_trait]
impl Op<ImmutableRef> for GitOp {
    async fn cache_map(&self, ctx: &OpContext, _: usize) -> Result<(CacheMap, bool), OpError> {
        let resolved = self.resolved(ctx).await?;
        let key = self.key(resolved);
        Ok((
            CacheMap {
                digest: llb::cache::source_key(&key),
                deps: Vec::new(),
                is_local: false,
                explain: key,
                pin: Some(resolved.commit.clone()),
            },
            true,
        ))
    }

    async fn exec(&self, ctx: &OpContext, _: Vec<ImmutableRef>) -> Result<Vec<ImmutableRef>, OpError> {
        let resolved = self.resolved(ctx).await?.clone();
        let git = self.git(ctx).await?;
        let (bare, lock) = self.shared(&git).await?;
        self.fetch(&git, &bare, &resolved).await?;
        let work = self.checkout(&git, &bare, &resolved).await?;
        let mut time = None;
        if self.commit_times {
            let commit = format!("{}^{{commit}}", resolved.object);
            let said = git
                .run("look into", Some(&bare), &["log", "-1", "--format=%ct", &commit])
                .await?;
            let secs = said
                .trim()
                .parse()
                .map_err(|_| OpError::environment("git gave no time of the commit"))?;
            time = Some(Timestamp::from_secs(secs));
        }
        drop(lock);
        let info = RecordInfo {
            kind: RecordKind::SourceGitCheckout,
            description: format!("git snapshot for {}#{}", self.shown(), self.reference),
        };
        let (cache, subdir) = (self.worker.cache.clone(), self.subdir.clone());
        let made = tokio::task::spawn_blocking(move || {
            let made = layer_of(&cache, &work, &subdir, time, info);
            drop(git); // and with it the checkout
            made
        });
        made.await
            .map_err(|_| OpError::canceled())?
            .map(|made| vec![made])
    }
}

/// The layer of a checkout's subdirectory, owned by root.
fn layer_of(
    cache: &Cache,
    work: &Path,
    subdir: &RootPath,
    time: Option<Timestamp>,
    info: RecordInfo,
) -> Result<ImmutableRef, OpError> {
    let root = Root::open(work).map_err(OpError::environment)?;
    // No link is followed on the way: a repository cannot lead out of itself.
    let root = root
        .sub_root(subdir)
        .map_err(|_| OpError::user(GitError::Subdir(subdir.display().to_string())))?;
    let found = walk(&root, &Everything, WalkOptions { xattrs: false }).map_err(OpError::environment)?;
    let failed = |error: cache::layer::LayerError| cache_error(error.into());
    let mut writer = TarLayerWriter::new(cache.content().ingest().map_err(cache_error)?);
    for item in found {
        let mut entry = item.entry;
        (entry.uid, entry.gid) = (0, 0);
        entry.mtime = time.unwrap_or(entry.mtime);
        if entry.kind == Kind::File {
            let (contents, _) = root.open_file(&entry.path).map_err(OpError::environment)?;
            writer.add(&entry, contents).map_err(failed)?;
        } else {
            writer.add(&entry, std::io::empty()).map_err(failed)?;
        }
    }
    let (ingest, layer) = writer.finish().map_err(failed)?;
    cache
        .add_tar_layer(&cache.scratch(), ingest, layer, info)
        .map_err(cache_error)
}
