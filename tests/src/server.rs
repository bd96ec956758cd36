//! A web server for one case: the files of its `serve` folder, and git repositories made of its folders.
//!
//! ```text
//! GET /<path>                ─▶ serve/<path>, with ETag and (where the case says so) Last-Modified
//! /<name>.git/…  ─▶ git http-backend ─▶ the repository made of serve/<name>
//! ```
//!
//! Everything is done at one time of the case's choice, so that commits are always the same.
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

/// What `[serve]` says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Serve {
    /// `Last-Modified` of files, by path.
    #[serde(default)]
    last_modified: BTreeMap<String, String>,
    /// `Content-Disposition` of files, by path.
    #[serde(default)]
    disposition: BTreeMap<String, String>,
    /// A header that a request for a file or a repository (`<name>.git`) must have; else the answer is 401.
    #[serde(default)]
    wants: BTreeMap<String, String>,
    /// Repositories.
    #[serde(default)]
    git: Vec<Repository>,
}

/// A repository: one commit on `main` of the folder `serve/<name>`, then what else is wanted.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Repository {
    name: String,
    /// When its commits were made, in seconds since 1970.
    #[serde(default)]
    time: i64,
    /// Tags with a message on the first commit.
    #[serde(default)]
    tags: Vec<String>,
    /// Branches with one more commit each, which writes the branch's name to a file `branch`.
    #[serde(default)]
    branches: Vec<String>,
    /// Repositories made before this one, by the path at which they are a submodule.
    #[serde(default)]
    submodules: BTreeMap<String, String>,
}

/// Serves until the process ends.
pub(crate) struct Server {
    /// `http://127.0.0.1:<port>`
    pub(crate) at: String,
    /// First commits of the repositories, by name.
    pub(crate) commits: BTreeMap<String, String>,
}

struct Site {
    folder: PathBuf,
    repositories: PathBuf,
    serve: Serve,
}

impl Server {
    /// Serves `folder`; repositories are made below `aside`.
    pub(crate) fn start(folder: &Path, aside: &Path, serve: &Serve) -> Result<Server> {
        fs::create_dir_all(aside)?;
        let mut commits = BTreeMap::new();
        for repository in &serve.git {
            let commit = repository.make(folder, aside, &commits)?;
            commits.insert(repository.name.clone(), commit);
        }
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let at = format!("http://{}", listener.local_addr()?);
        let site = Arc::new(Site {
            folder: folder.to_owned(),
            repositories: aside.to_owned(),
            serve: serve.clone(),
        });
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let site = site.clone();
                // Whoever hangs up early has seen enough.
                std::thread::spawn(move || site.answer(stream).ok());
            }
        });
        Ok(Server { at, commits })
    }
}

impl Repository {
    fn make(&self, folder: &Path, aside: &Path, commits: &BTreeMap<String, String>) -> Result<String> {
        let bare = aside.join(format!("{}.git", self.name));
        let work = folder.join(&self.name);
        let git = |args: &[&str]| -> Result<String> {
            let date = format!("@{} +0000", self.time);
            let output = Command::new("git")
                .arg("--git-dir")
                .arg(&bare)
                .arg("--work-tree")
                .arg(&work)
                .args(args)
                .env_clear()
                .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
                .envs([
                    ("GIT_AUTHOR_NAME", "A"),
                    ("GIT_AUTHOR_EMAIL", "a@example.org"),
                    ("GIT_COMMITTER_NAME", "A"),
                    ("GIT_COMMITTER_EMAIL", "a@example.org"),
                    ("GIT_CONFIG_NOSYSTEM", "1"),
                    ("GIT_AUTHOR_DATE", &date),
                    ("GIT_COMMITTER_DATE", &date),
                ])
                .output()?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.success(), "git {args:?}: {said}");
            Ok(String::from_utf8(output.stdout)?.trim().to_owned())
        };
        git(&["init", "--quiet", "--initial-branch=main"])?;
        git(&["config", "uploadpack.allowAnySHA1InWant", "true"])?;
        if !self.submodules.is_empty() {
            let lines = self.submodules.iter();
            let lines = lines.map(|(path, name)| {
                format!("[submodule \"{path}\"]\n\tpath = {path}\n\turl = ../{name}.git\n")
            });
            fs::write(work.join(".gitmodules"), lines.collect::<String>())?;
        }
        git(&["add", "--all"])?;
        for (path, name) in &self.submodules {
            let commit = commits
                .get(name)
                .with_context(|| format!("no repository {name} before"))?;
            git(&[
                "update-index",
                "--add",
                "--cacheinfo",
                &format!("160000,{commit},{path}"),
            ])?;
        }
        git(&["commit", "--quiet", "--allow-empty", "--message=first"])?;
        let first = git(&["rev-parse", "HEAD"])?;
        for tag in &self.tags {
            git(&["tag", "--annotate", "--message=tag", tag])?;
        }
        for branch in &self.branches {
            git(&["checkout", "--quiet", "-b", branch, &first])?;
            fs::write(work.join("branch"), branch)?;
            git(&["add", "branch"])?;
            git(&["commit", "--quiet", "--message=more"])?;
        }
        git(&["symbolic-ref", "HEAD", "refs/heads/main"])?;
        git(&["config", "--unset", "core.worktree"])?;
        git(&["config", "core.bare", "true"])?;
        Ok(first)
    }
}

impl Site {
    fn answer(&self, mut stream: TcpStream) -> Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let mut words = line.split(' ');
        let (method, target) = (
            words.next().unwrap_or_default().to_owned(),
            words.next().unwrap_or_default().to_owned(),
        );
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(": ") else {
                break;
            };
            headers.insert(name.to_lowercase(), value.to_owned());
        }
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let name = path.trim_start_matches('/');
        let whose = name
            .split_once(".git/")
            .map_or(name.to_owned(), |(repository, _)| format!("{repository}.git"));
        if self.serve.wants.get(&whose).is_some_and(|wanted| {
            let (name, value) = wanted.split_once(": ").unwrap_or((wanted, ""));
            headers
                .get(&name.to_lowercase())
                .is_none_or(|given| given != value)
        }) {
            return Ok(stream.write_all(
                b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            )?);
        }
        if path.contains(".git/") {
            let length = headers
                .get("content-length")
                .map_or(Ok(0), |text| text.parse::<u64>())?;
            let mut body = Vec::new();
            reader.take(length).read_to_end(&mut body)?;
            return self.git(&mut stream, &method, path, query, &headers, &body);
        }
        let mut more = String::new();
        let Ok(content) = fs::read(self.folder.join(name)) else {
            return Ok(stream
                .write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?);
        };
        if let Some(time) = self.serve.last_modified.get(name) {
            more += &format!("Last-Modified: {time}\r\n");
        }
        if let Some(disposition) = self.serve.disposition.get(name) {
            more += &format!("Content-Disposition: {disposition}\r\n");
        }
        let length = content.len();
        let etag = content
            .iter()
            .fold(length, |sum, byte| sum.wrapping_mul(31) ^ usize::from(*byte));
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nETag: \"{etag:x}\"\r\n{more}Connection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes())?;
        if method != "HEAD" {
            stream.write_all(&content)?;
        }
        Ok(())
    }

    /// By the program that git brings for this, RFC 3875.
    fn git(
        &self,
        stream: &mut TcpStream,
        method: &str,
        path: &str,
        query: &str,
        headers: &BTreeMap<String, String>,
        body: &[u8],
    ) -> Result<()> {
        let header = |name: &str| headers.get(name).cloned().unwrap_or_default();
        let mut child = Command::new("git")
            .arg("http-backend")
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .env("GIT_PROJECT_ROOT", &self.repositories)
            .env("GIT_CONFIG_COUNT", "1")
            .env("GIT_CONFIG_KEY_0", "safe.directory")
            .env("GIT_CONFIG_VALUE_0", "*")
            .envs([
                ("GIT_HTTP_EXPORT_ALL", "1".to_owned()),
                ("REQUEST_METHOD", method.to_owned()),
                ("PATH_INFO", path.to_owned()),
                ("QUERY_STRING", query.to_owned()),
                ("CONTENT_TYPE", header("content-type")),
                ("CONTENT_LENGTH", header("content-length")),
                ("HTTP_CONTENT_ENCODING", header("content-encoding")),
                ("GIT_PROTOCOL", header("git-protocol")),
                ("REMOTE_ADDR", "127.0.0.1".to_owned()),
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        child.stdin.take().context("it has one")?.write_all(body)?;
        let output = child.wait_with_output()?.stdout;
        let end = output
            .windows(4)
            .position(|bytes| bytes == b"\r\n\r\n")
            .context("headers")?;
        let head = std::str::from_utf8(&output[..end])?;
        let status = head
            .lines()
            .find_map(|line| line.strip_prefix("Status: "))
            .unwrap_or("200 OK");
        let length = output.len() - end - 4;
        let answer =
            format!("HTTP/1.1 {status}\r\n{head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
        stream.write_all(answer.as_bytes())?;
        Ok(stream.write_all(&output[end + 4..])?)
    }
}
