//! Source policies: rules of requests, and a client that decides.

mod support;

use api::control::{BytesMessage, SolveRequest};
use api::gateway::{
    self, ResolveSourceHttpRequest, ResolveSourceMetaRequest, ResolveSourceMetaResponse, ReturnRequest,
};
use api::sourcepolicy::policysession::check_policy_response::Result as Answer;
use api::sourcepolicy::policysession::policy_verifier_server::{PolicyVerifier, PolicyVerifierServer};
use api::sourcepolicy::policysession::{
    CheckPolicyRequest, CheckPolicyResponse, DecisionResponse, DenyMessage,
};
use api::sourcepolicy::{MatchType, Policy, PolicyAction, Rule, Selector, Update};
use futures_util::StreamExt;
use prost::Message;
use std::path::Path;
use std::sync::Arc;
use support::{Client, Daemon, Session, context, directory, local, of};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::ReaderStream;
use tonic::metadata::MetadataValue;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// Two contexts: `context`, and `other` whose file says something else.
async fn session(client: &Client, folder: &Path) -> Session {
    let context = context(folder, "FROM scratch\nCOPY file /copied\n");
    let other = folder.join("other");
    std::fs::create_dir_all(&other).expect("made");
    std::fs::write(other.join("file"), "other\n").expect("written");
    let dirs: [(&str, &Path); 3] = [("context", &context), ("dockerfile", &context), ("other", &other)];
    client
        .session("session", &dirs, Some(directory(&folder.join("out"))))
        .await
}

fn request(id: &str) -> SolveRequest {
    SolveRequest {
        r#ref: id.into(),
        session: "session".into(),
        frontend: "dockerfile.v0".into(),
        exporters: local(),
        ..SolveRequest::default()
    }
}

fn rule(action: PolicyAction, name: &str, update: Option<&str>) -> Policy {
    Policy {
        version: 1,
        rules: vec![Rule {
            action: action.into(),
            selector: Some(Selector {
                identifier: name.into(),
                match_type: MatchType::Wildcard.into(),
                ..Selector::default()
            }),
            updates: update.map(|identifier| Update {
                identifier: identifier.into(),
                ..Update::default()
            }),
        }],
    }
}

fn copied(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("out/copied")).expect("it was given out")
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_of_a_request() {
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path());
    let client = daemon.client().await;
    let session = session(&client, folder.path()).await;

    let denied = SolveRequest {
        source_policy: Some(rule(PolicyAction::Deny, "local://con*", None)),
        ..request("denied")
    };
    let status = client.control().solve(denied).await.expect_err("denied");
    let wanted = "source \"local://context\" denied by policy";
    assert!(status.message().contains(wanted), "{}", status.message());

    let converted = SolveRequest {
        source_policy: Some(rule(
            PolicyAction::Convert,
            "local://context",
            Some("local://other"),
        )),
        ..request("converted")
    };
    client.control().solve(converted).await.expect("it builds");
    session.settle().await;
    assert_eq!(copied(folder.path()), "other\n");

    let none = SolveRequest {
        source_policy: Some(rule(PolicyAction::Deny, "a**", None)),
        ..request("none")
    };
    let status = client.control().solve(none).await.expect_err("refused");
    assert!(
        status.message().contains("invalid wildcard"),
        "{}",
        status.message()
    );
    session.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_of_one_call_of_the_gateway() {
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path());
    let client = daemon.client().await;
    let session = session(&client, folder.path()).await;
    let asked = SolveRequest {
        frontend: String::new(),
        ..request("call")
    };
    let mut control = client.control();
    let solve = tokio::spawn(async move { control.solve(asked).await });
    let mut bridge = client.bridge();
    let deny = |name: &str| vec![rule(PolicyAction::Deny, name, None)];

    let solving = gateway::SolveRequest {
        frontend: "dockerfile.v0".into(),
        source_policies: deny("local://context"),
        ..gateway::SolveRequest::default()
    };
    let status = bridge.solve(of("call", solving)).await.expect_err("denied");
    assert!(
        status.message().contains("denied by policy"),
        "{}",
        status.message()
    );

    let resolving = ResolveSourceMetaRequest {
        source: Some(llb::proto::SourceOp {
            identifier: "docker-image://docker.io/library/none:1".into(),
            ..<_>::default()
        }),
        source_policies: deny("docker-image://*"),
        ..ResolveSourceMetaRequest::default()
    };
    let status = bridge
        .resolve_source_meta(of("call", resolving))
        .await
        .expect_err("denied");
    let wanted =
        "could not resolve image due to policy: source \"docker-image://docker.io/library/none:1\" denied";
    assert!(status.message().contains(wanted), "{}", status.message());

    // The next call has no rules.
    let solving = gateway::SolveRequest {
        frontend: "dockerfile.v0".into(),
        ..gateway::SolveRequest::default()
    };
    let result = bridge
        .solve(of("call", solving))
        .await
        .expect("allowed")
        .into_inner();
    let returned = ReturnRequest {
        result: result.result,
        error: None,
    };
    bridge.r#return(of("call", returned)).await.expect("taken");
    solve.await.expect("no panic").expect("it builds");
    session.settle().await;
    assert_eq!(copied(folder.path()), "content\n");
    session.cancel();
}

type Decide = dyn Fn(&ResolveSourceMetaResponse) -> Answer + Send + Sync;

/// A client that decides.
struct Decider(Arc<Decide>);

#[tonic::async_trait]
impl PolicyVerifier for Decider {
    async fn check_policy(
        &self,
        request: Request<CheckPolicyRequest>,
    ) -> Result<Response<CheckPolicyResponse>, Status> {
        let known = request.into_inner().source.expect("a source");
        Ok(Response::new(CheckPolicyResponse {
            result: Some((self.0)(&known)),
        }))
    }
}

/// Opens a session that does nothing but decide.
async fn decider(client: &Client, id: &str, decide: Arc<Decide>) {
    let (inner, outer) = tokio::io::duplex(1 << 16);
    let lines =
        futures_util::stream::iter([Ok::<_, std::io::Error>(inner)]).chain(futures_util::stream::pending());
    let service = PolicyVerifierServer::new(Decider(decide));
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(lines));
    let (reader, mut writer) = tokio::io::split(outer);
    let (to_daemon, outgoing) = mpsc::channel(16);
    tokio::spawn(async move {
        let mut parts = ReaderStream::new(reader);
        while let Some(Ok(data)) = parts.next().await {
            if to_daemon.send(BytesMessage { data }).await.is_err() {
                return;
            }
        }
    });
    let mut request = Request::new(ReceiverStream::new(outgoing));
    let text = |text: &str| MetadataValue::try_from(text).expect("plain text");
    let headers = request.metadata_mut();
    headers.insert("x-docker-expose-session-uuid", text(id));
    headers.append(
        "x-docker-expose-session-grpc-method",
        text("/moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier/CheckPolicy"),
    );
    let mut incoming = client
        .control()
        .session(request)
        .await
        .expect("a session")
        .into_inner();
    tokio::spawn(async move {
        while let Some(Ok(part)) = incoming.next().await {
            if tokio::io::AsyncWriteExt::write_all(&mut writer, &part.data)
                .await
                .is_err()
            {
                return;
            }
        }
    });
}

fn decision(action: PolicyAction) -> DecisionResponse {
    DecisionResponse {
        action: action.into(),
        ..DecisionResponse::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_decides() {
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path());
    let client = daemon.client().await;
    let session = session(&client, folder.path()).await;
    let name = |known: &ResolveSourceMetaResponse| known.source.as_ref().expect("one").identifier.clone();

    let converts = move |known: &ResolveSourceMetaResponse| match name(known).as_str() {
        "local://context" => {
            let mut source = known.source.clone().expect("one");
            source.identifier = "local://other".into();
            Answer::Decision(DecisionResponse {
                update: Some(source),
                ..decision(PolicyAction::Convert)
            })
        }
        _ => Answer::Decision(decision(PolicyAction::Allow)),
    };
    decider(&client, "converts", Arc::new(converts)).await;
    let asked = SolveRequest {
        source_policy_session: "converts".into(),
        ..request("converted")
    };
    client.control().solve(asked).await.expect("it builds");
    session.settle().await;
    assert_eq!(copied(folder.path()), "other\n");

    let denies = move |known: &ResolveSourceMetaResponse| match name(known).as_str() {
        "local://context" => Answer::Decision(DecisionResponse {
            deny_messages: vec![DenyMessage {
                message: "no contexts here".into(),
            }],
            ..decision(PolicyAction::Deny)
        }),
        _ => Answer::Decision(decision(PolicyAction::Allow)),
    };
    decider(&client, "denies", Arc::new(denies)).await;
    let asked = SolveRequest {
        source_policy_session: "denies".into(),
        ..request("denied")
    };
    let status = client.control().solve(asked).await.expect_err("denied");
    let wanted = "source \"local://context\" not allowed by policy: action DENY";
    assert!(status.message().contains(wanted), "{}", status.message());
    let details = api::rpc::Status::decode(status.details())
        .expect("details")
        .details;
    let words = details
        .iter()
        .find(|detail| detail.type_url == "github.com/moby/buildkit/policysession.DecisionResponse+json")
        .expect("the client's words");
    assert!(String::from_utf8_lossy(&words.value).contains("no contexts here"));
    session.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_without_end_or_about_something_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path());
    let client = daemon.client().await;
    let session = session(&client, folder.path()).await;
    let circles = |known: &ResolveSourceMetaResponse| {
        let mut source = known.source.clone().expect("one");
        source.identifier.push('x');
        Answer::Decision(DecisionResponse {
            update: Some(source),
            ..decision(PolicyAction::Convert)
        })
    };
    decider(&client, "circles", Arc::new(circles)).await;
    let strays = |_: &ResolveSourceMetaResponse| {
        Answer::Request(ResolveSourceMetaRequest {
            source: Some(llb::proto::SourceOp {
                identifier: "http://127.0.0.1:1/secret".into(),
                ..<_>::default()
            }),
            http: Some(ResolveSourceHttpRequest::default()),
            ..ResolveSourceMetaRequest::default()
        })
    };
    decider(&client, "strays", Arc::new(strays)).await;
    for (who, wanted) in [
        ("circles", "too many policy requests"),
        ("strays", "policy requested different source identifier"),
    ] {
        let asked = SolveRequest {
            source_policy_session: who.into(),
            ..request(who)
        };
        let status = client
            .control()
            .solve(asked)
            .await
            .expect_err("it cannot be decided");
        assert!(status.message().contains(wanted), "{}", status.message());
    }
    session.cancel();
}
