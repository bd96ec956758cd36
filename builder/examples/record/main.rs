//! Writes down what a client asks a daemon, one line a message: for the sequences in `tests/sequences`.
//!
//! ```text
//! client ─▶ socket of ours ─▶ recorder ─▶ the daemon's socket
//!                                └─▶ a file to look at
//! ```
//!
//! `cargo run -p builder --example record -- DAEMON-SOCKET SOCKET-FOR-THE-CLIENT FILE`, until it is ended.
mod recorder;

use anyhow::{Context, Result, bail};
use http::Uri;
use hyper_util::rt::TokioIo;
use recorder::Recorder;
use std::path::PathBuf;
use tonic::transport::Endpoint;

#[tokio::main]
async fn main() -> Result<()> {
    let places: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [daemon, socket, out] = places.as_slice() else {
        bail!("say three things: the daemon's socket, the socket for the client, the file to write");
    };
    let connector = tower::service_fn({
        let daemon = daemon.clone();
        move |_: Uri| {
            let daemon = daemon.clone();
            async move { tokio::net::UnixStream::connect(daemon).await.map(TokioIo::new) }
        }
    });
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .with_context(|| format!("connect to the daemon at {}", daemon.display()))?;
    let out = std::fs::File::create(out).with_context(|| format!("make {}", out.display()))?;
    Recorder::serve(channel, socket, Box::new(out)).await;
    Ok(())
}
