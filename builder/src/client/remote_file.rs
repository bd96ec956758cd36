//! A Dockerfile from an http address, fetched by the daemon that is to build it: it may see addresses that we do not, and it
//! keeps what it fetched.
//!
//! ```text
//! Solve (internal) ─▶ gateway: Solve (http source) ─▶ ReadFile ─▶ Return
//! ```
use super::attach::attach;
use super::in_process::{machine, new_id};
use super::solve::{failure, of_build, told};
use crate::build::BuildError;
use api::control::SolveRequest;
use api::control::control_client::ControlClient;
use api::gateway::llb_bridge_client::LlbBridgeClient;
use api::gateway::{self, FileRange, ReadFileRequest, ReturnRequest, result};
use llb::Definition;
use session::provider::Provider;
use session::{LocalCaller, LocalOptions, SessionId};
use std::collections::BTreeMap;
use std::sync::Arc;
use tonic::Status;
use tonic::transport::Channel;

/// What the file is called once it is fetched.
pub(super) const NAME: &str = "Dockerfile";
/// Larger files are no Dockerfiles.
const MAX_BYTES: i64 = 16 << 20;

/// The source that fetches it.
///
/// # Errors
/// The address cannot be put into a definition.
pub(super) fn definition(address: &str) -> Result<Definition, BuildError> {
    let source = llb::state::HttpSource {
        url: address.to_owned(),
        filename: NAME.to_owned(),
        ..llb::state::HttpSource::default()
    };
    let constraints = llb::state::Constraints::default()
        .named(format!("[internal] load remote build definition {address}"));
    llb::state::marshal(&source.state(constraints)).map_err(|error| machine(&doing(address), error))
}

/// The file, as the daemon gets it.
///
/// # Errors
/// The daemon cannot get it, or it is too large for a Dockerfile.
pub(super) async fn fetch(channel: &Channel, address: &str) -> Result<Vec<u8>, BuildError> {
    let id = || new_id().map_err(|error| machine("make an id", error));
    let (build, session) = (id()?, id()?);
    let definition = definition(address)?.to_proto();
    let caller = LocalCaller::new(SessionId::new(&session), LocalOptions::default());
    let provider = Provider::new(Arc::new(caller), BTreeMap::new(), BTreeMap::new());
    let mut control = ControlClient::new(channel.clone());
    let attached = attach(&control, Arc::new(provider), &session, "", None).await;
    let attached = attached.map_err(failure)?;
    let asked = SolveRequest {
        r#ref: build.clone(),
        session,
        internal: true,
        ..SolveRequest::default()
    };
    let reading = async {
        let read = read(channel, &build, definition).await;
        let error = read.as_ref().err().map(told);
        let result = error.is_none().then(|| gateway::Result {
            result: Some(result::Result::Ref(gateway::Ref::default())),
            ..gateway::Result::default()
        });
        let returned = of_build(&build, ReturnRequest { result, error })?;
        bridge(channel).r#return(returned).await?;
        read
    };
    let (read, ended) = tokio::join!(reading, control.solve(asked));
    attached.close().await;
    let text = read.map_err(failure)?;
    ended.map_err(failure)?;
    match text.len() as i64 {
        0 => Err(machine(&doing(address), "the answer is empty")),
        MAX_BYTES => Err(machine(
            &doing(address),
            format!("it has {MAX_BYTES} bytes or more"),
        )),
        _ => Ok(text),
    }
}

async fn read(channel: &Channel, build: &str, definition: llb::proto::Definition) -> Result<Vec<u8>, Status> {
    let asked = gateway::SolveRequest {
        definition: Some(definition),
        allow_result_return: true,
        allow_result_array_ref: true,
        evaluate: true,
        ..gateway::SolveRequest::default()
    };
    let answer = bridge(channel).solve(of_build(build, asked)?).await?.into_inner();
    let Some(result::Result::Ref(found)) = answer.result.and_then(|result| result.result) else {
        return Err(Status::internal("the daemon gave no result for the file"));
    };
    let asked = ReadFileRequest {
        r#ref: found.id,
        file_path: NAME.to_owned(),
        range: Some(FileRange {
            offset: 0,
            length: MAX_BYTES,
        }),
        ..ReadFileRequest::default()
    };
    let answer = bridge(channel).read_file(of_build(build, asked)?).await?;
    Ok(answer.into_inner().data.to_vec())
}

fn bridge(channel: &Channel) -> LlbBridgeClient<Channel> {
    LlbBridgeClient::new(channel.clone()).max_decoding_message_size(2 * MAX_BYTES as usize)
}

/// What is done, for errors.
pub(super) fn doing(address: &str) -> String {
    format!("fetch the Dockerfile from {address}")
}
