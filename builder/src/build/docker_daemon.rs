//! An archive sent to a Docker daemon as `docker load` does: one POST over its unix socket.
//!
//! ```text
//! exporter ─▶ writer (chunks) ─▶ /images/load ─▶ a line of JSON per message ─▶ done, or the daemon's error
//! ```
use std::io::{BufRead, BufReader, Error, Read, Result, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

const REQUEST: &str = "POST /images/load?quiet=1 HTTP/1.1\r\nHost: docker\r\nContent-Type: application/x-tar\r\n\
                       Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
/// The most of an answer that is read, in bytes.
const MAX_ANSWER_BYTES: u64 = 1 << 20;

/// A load that has begun.
pub(crate) struct DockerLoad {
    stream: UnixStream,
}

impl DockerLoad {
    /// Connects and asks.
    pub(super) fn begin(socket: Option<&Path>) -> Result<DockerLoad> {
        let mut stream = DockerLoad::reach(socket)?;
        stream.write_all(REQUEST.as_bytes())?;
        Ok(DockerLoad { stream })
    }

    /// Connects, or says what to do without a daemon.
    pub(super) fn reach(socket: Option<&Path>) -> Result<UnixStream> {
        let Some(socket) = socket else {
            return Err(Error::other(
                "DOCKER_HOST is not a unix socket; write an archive instead: -o type=docker,dest=FILE",
            ));
        };
        UnixStream::connect(socket).map_err(|error| {
            Error::other(format!(
                "connect to the Docker daemon at {}: {error}; without one, leave out --load (the image goes into the \
                 builder's own store) or write an archive: -o type=docker,dest=FILE",
                socket.display()
            ))
        })
    }

    /// Where the archive is written.
    pub(super) fn writer(&self) -> Result<Box<dyn Write + Send>> {
        const BUFFER_BYTES: usize = 256 << 10;
        Ok(Box::new(std::io::BufWriter::with_capacity(
            BUFFER_BYTES,
            Chunks(self.stream.try_clone()?),
        )))
    }

    /// Ends the archive and reads what the daemon says.
    pub(super) fn finish(mut self) -> Result<()> {
        self.stream.write_all(b"0\r\n\r\n")?;
        judge(BufReader::new(self.stream.take(MAX_ANSWER_BYTES)))
    }
}

/// HTTP's chunked encoding.
struct Chunks(UnixStream);

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        if !bytes.is_empty() {
            write!(self.0, "{:x}\r\n", bytes.len())?;
            self.0.write_all(bytes)?;
            self.0.write_all(b"\r\n")?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> Result<()> {
        self.0.flush()
    }
}

/// Fails with the daemon's words if its answer is an error.
fn judge(mut answer: impl BufRead) -> Result<()> {
    let mut status = String::new();
    answer.read_line(&mut status)?;
    let mut body = Vec::new();
    answer.read_to_end(&mut body)?;
    let body = String::from_utf8_lossy(&body);
    let message = body.lines().find_map(|line| {
        let json: serde_json::Value = serde_json::from_str(line.trim()).ok()?;
        json.get("error")
            .or_else(|| json.get("message"))?
            .as_str()
            .map(str::to_owned)
    });
    match (status.split(' ').nth(1), message) {
        (Some("200"), None) => Ok(()),
        (_, Some(message)) => Err(Error::other(format!(
            "the Docker daemon refused the image: {message}"
        ))),
        _ => Err(Error::other(format!(
            "the Docker daemon answered {:?}",
            status.trim()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemons_words_are_passed_on() {
        for (answer, expected) in [
            (
                "HTTP/1.1 200 OK\r\n\r\n{\"stream\":\"Loaded image: a:1\"}\n",
                None,
            ),
            (
                "HTTP/1.1 200 OK\r\n\r\n{\"error\":\"no space\"}\n",
                Some("no space"),
            ),
            (
                "HTTP/1.1 500 Oops\r\n\r\n{\"message\":\"bad tar\"}",
                Some("bad tar"),
            ),
            ("HTTP/1.1 404 Not Found\r\n\r\n", Some("404")),
            ("", Some("\"\"")),
        ] {
            let judged = judge(answer.as_bytes()).map_err(|error| error.to_string());
            match expected {
                None => assert_eq!(judged, Ok(()), "{answer}"),
                Some(words) => assert!(judged.is_err_and(|error| error.contains(words)), "{answer}"),
            }
        }
    }

    #[test]
    fn a_load_is_one_chunked_request() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("docker.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("bound");
        let daemon = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut seen = Vec::new();
            let mut byte = [0];
            while !seen.ends_with(b"0\r\n\r\n") {
                stream.read_exact(&mut byte).expect("more");
                seen.push(byte[0]);
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").expect("answered");
            String::from_utf8(seen).expect("text")
        });
        let load = DockerLoad::begin(Some(&path)).expect("connected");
        let mut writer = load.writer().expect("a writer");
        writer.write_all(b"archive").expect("written");
        drop(writer);
        load.finish().expect("loaded");
        assert!(
            daemon
                .join()
                .expect("no panic")
                .ends_with("\r\n\r\n7\r\narchive\r\n0\r\n\r\n")
        );
        assert!(DockerLoad::begin(None).is_err());
        assert!(DockerLoad::begin(Some(Path::new("/nonexistent.sock"))).is_err());
    }
}
