//! A frontend that is an image: it asks its daemon over its own stdin and stdout, as any frontend does.
//!
//! `mode` in the request says what it does: by default it lets the daemon read the Dockerfile and passes the result on,
//! having looked into it; `fail` says that something is wrong; `exit` and `silent` end without having said anything.
#![expect(clippy::print_stderr, reason = "a program says on stderr why it failed")]

use api::gateway::llb_bridge_client::LlbBridgeClient;
use api::gateway::{PingRequest, ReadFileRequest, ReturnRequest, SolveRequest, result};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use tonic::transport::{Channel, Endpoint, Uri};

struct Stdio(pipe::Receiver, pipe::Sender);

impl AsyncRead for Stdio {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, into)
    }
}

impl AsyncWrite for Stdio {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.1).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.1).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.1).poll_shutdown(cx)
    }
}

async fn connect() -> anyhow::Result<LlbBridgeClient<Channel>> {
    let stdin = io::stdin().as_fd().try_clone_to_owned()?;
    let stdout = io::stdout().as_fd().try_clone_to_owned()?;
    let mut line = Some(Stdio(
        pipe::Receiver::from_owned_fd(stdin)?,
        pipe::Sender::from_owned_fd(stdout)?,
    ));
    let connector = tower::service_fn(move |_: Uri| {
        let line = line
            .take()
            .ok_or_else(|| io::Error::other("there is one line only"));
        async move { line.map(hyper_util::rt::TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await?;
    Ok(LlbBridgeClient::new(channel))
}

/// The attributes of the request.
fn options() -> BTreeMap<String, String> {
    let numbered = std::env::vars().filter(|(name, _)| name.starts_with("BUILDKIT_FRONTEND_OPT_"));
    numbered
        .filter_map(|(_, option)| {
            let (key, value) = option.split_once('=')?;
            Some((key.to_owned(), value.to_owned()))
        })
        .collect()
}

async fn answer(mut options: BTreeMap<String, String>) -> anyhow::Result<()> {
    let mut bridge = connect().await?;
    let pong = bridge.ping(PingRequest::default()).await?.into_inner();
    anyhow::ensure!(pong.workers.len() == 1, "there is one worker");
    let returned = if options.get("build-arg:mode").is_some_and(|mode| mode == "fail") {
        ReturnRequest {
            result: None,
            error: Some(api::rpc::Status {
                code: 3,
                message: "nothing here is to this frontend's taste".to_owned(),
                details: Vec::new(),
            }),
        }
    } else {
        let source = options.remove("source").unwrap_or_default();
        let asked = SolveRequest {
            frontend: "dockerfile.v0".to_owned(),
            frontend_opt: options,
            allow_result_return: true,
            allow_result_array_ref: true,
            ..SolveRequest::default()
        };
        let solved = bridge.solve(asked).await?.into_inner();
        let mut result = solved.result.unwrap_or_default();
        if let Some(result::Result::Ref(one)) = &result.result {
            let asked = ReadFileRequest {
                r#ref: one.id.clone(),
                file_path: "/copied".to_owned(),
                ..ReadFileRequest::default()
            };
            let copied = bridge.read_file(asked).await?.into_inner().data;
            result.metadata.insert("frontend.read".to_owned(), copied);
        }
        result
            .metadata
            .insert("frontend.source".to_owned(), source.into_bytes().into());
        ReturnRequest {
            result: Some(result),
            error: None,
        }
    };
    bridge.r#return(returned).await?;
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let options = options();
    match options.get("build-arg:mode").map(String::as_str) {
        Some("silent") => return,
        Some("exit") => {
            eprintln!("this frontend has had enough");
            std::process::exit(3);
        }
        _ => {}
    }
    if let Err(error) = answer(options).await {
        eprintln!("{error:#}");
        std::process::exit(1);
    }
}
