//! The client that decides about sources: every source of a build is shown to it before anything of the build is solved.
//!
//! ```text
//! definition ─▶ its sources ─▶ CheckPolicy over the policy's session ─┬─ allow
//!                                     ▲                              ├─ deny: the build fails
//!                                     └── metadata it asks for ◀─────┘
//! ```
use super::errors::Failure;
use crate::build::{Engine, Guard};
use api::gateway::{ResolveSourceImageResponse, ResolveSourceMetaRequest, ResolveSourceMetaResponse};
use api::sourcepolicy::PolicyAction;
use api::sourcepolicy::policysession::check_policy_response::Result as Answer;
use api::sourcepolicy::policysession::policy_verifier_client::PolicyVerifierClient;
use api::sourcepolicy::policysession::{CheckPolicyRequest, DecisionResponse};
use async_trait::async_trait;
use frontend::GatewayError;
use llb::{Definition, Op};
use oci::{Platform, Reference};
use session::Sessions;
use solver::Job;
use solver::progress::Sink;
use std::sync::Arc;
use tonic::Code;
use worker::Session;

/// The method a client must offer to decide.
const METHOD: &str = "/moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier/CheckPolicy";
/// Questions back and forth about one source before giving up.
const MAX_ROUNDS: usize = 10;

/// One build's policy.
pub(super) struct Policy {
    engine: Arc<Engine>,
    sessions: Arc<Sessions>,
    /// The session that decides.
    decider: String,
    /// The build's own session, for what the policy wants to know of a source.
    session: Arc<Session>,
    progress: Sink,
}

impl Policy {
    /// The policy of a build whose request names the session `decider`.
    pub(super) fn new(
        engine: Arc<Engine>,
        sessions: Arc<Sessions>,
        decider: &str,
        session: Arc<Session>,
        job: &Job<cache::ImmutableRef>,
    ) -> Policy {
        let step = job.step(&format!("{}-policy", job.id()), "[internal] source policy");
        let progress = step.sink().clone();
        step.finish(None);
        Policy {
            engine,
            sessions,
            decider: decider.to_owned(),
            session,
            progress,
        }
    }

    /// Asks about every source of a definition.
    pub(super) async fn check(&self, definition: &Definition) -> Result<(), Failure> {
        let graph = definition
            .to_graph()
            .map_err(|error| Failure::new(Code::Unknown, format!("failed to load LLB: {error}")))?;
        for vertex in &graph.vertices {
            if let Op::Source(source) = &vertex.op {
                let op = llb::proto::SourceOp {
                    identifier: source.identifier.clone(),
                    attrs: source.attrs.clone(),
                };
                self.ask(op, vertex.platform.as_ref()).await?;
            }
        }
        Ok(())
    }

    /// Asks about an image that is no source of a definition: a frontend.
    pub(super) async fn check_image(&self, reference: &str) -> Result<(), Failure> {
        let op = llb::proto::SourceOp {
            identifier: format!("docker-image://{reference}"),
            ..llb::proto::SourceOp::default()
        };
        self.ask(op, None).await
    }

    async fn ask(&self, source: llb::proto::SourceOp, platform: Option<&Platform>) -> Result<(), Failure> {
        let identifier = source.identifier.clone();
        let refused = |why: &str| {
            Failure::new(
                Code::Unknown,
                format!("source {identifier:?} not allowed by policy: {why}"),
            )
        };
        let caller = self
            .sessions
            .get(&self.decider)
            .await
            .map_err(|error| refused(&error.to_string()))?;
        if !caller.offers(METHOD) {
            return Err(refused("the session named for it does not decide about sources"));
        }
        let mut client = PolicyVerifierClient::new(caller.channel());
        let mut known = ResolveSourceMetaResponse {
            source: Some(source),
            ..ResolveSourceMetaResponse::default()
        };
        let platform = platform.cloned().unwrap_or_else(Platform::host);
        for _ in 0..MAX_ROUNDS {
            let asked = CheckPolicyRequest {
                platform: Some(super::control::platform(&platform)),
                source: Some(known.clone()),
                ..CheckPolicyRequest::default()
            };
            let answer = client
                .check_policy(asked)
                .await
                .map_err(|status| refused(status.message()))?;
            match answer.into_inner().result {
                Some(Answer::Decision(decision)) => return decide(&decision).map_err(|why| refused(&why)),
                Some(Answer::Request(wanted)) => {
                    known = self.find_out(wanted, known).await.map_err(|why| refused(&why))?
                }
                None => return Err(refused("the policy gave no answer")),
            }
        }
        Err(refused("the policy asks without end"))
    }

    /// What the policy wants to know of a source.
    async fn find_out(
        &self,
        wanted: ResolveSourceMetaRequest,
        known: ResolveSourceMetaResponse,
    ) -> Result<ResolveSourceMetaResponse, String> {
        let source = wanted
            .source
            .or(known.source)
            .ok_or("the policy asks about no source")?;
        let Some(name) = source.identifier.strip_prefix("docker-image://") else {
            let scheme = source
                .identifier
                .split("://")
                .next()
                .unwrap_or_default()
                .to_owned();
            return Err(format!(
                "it wants the metadata of a {scheme} source, which is not supported yet"
            ));
        };
        let asked = wanted.image.unwrap_or_default();
        if asked.attestation_chain || !asked.resolve_attestations.is_empty() {
            return Err("it wants the attestations of an image, which is not supported yet".into());
        }
        let reference = Reference::parse_normalized(name).map_err(|error| error.to_string())?;
        let platform = wanted
            .platform
            .map_or_else(Platform::host, super::gateway::platform_of);
        let found = self
            .engine
            .worker
            .resolve_image(
                &self.session,
                &reference,
                &platform,
                worker::ResolveMode::Default,
                worker::ImagePlace::Registry,
                &self.progress,
            )
            .await
            .map_err(|error| error.to_string())?;
        let config = if asked.no_config { Vec::new() } else { found.config };
        Ok(ResolveSourceMetaResponse {
            source: Some(source),
            image: Some(ResolveSourceImageResponse {
                digest: found.digest.to_string(),
                config: config.into(),
                ..ResolveSourceImageResponse::default()
            }),
            ..ResolveSourceMetaResponse::default()
        })
    }
}

#[async_trait]
impl Guard for Policy {
    async fn allow(&self, definition: &Definition) -> Result<(), GatewayError> {
        self.check(definition)
            .await
            .map_err(|failure| GatewayError::new(failure.0.message))
    }
}

/// What a decision means; an error says why not.
fn decide(decision: &DecisionResponse) -> Result<(), String> {
    match PolicyAction::try_from(decision.action) {
        Ok(PolicyAction::Allow) => Ok(()),
        Ok(PolicyAction::Deny) => {
            let words: Vec<&str> = decision
                .deny_messages
                .iter()
                .map(|one| one.message.as_str())
                .collect();
            Err(if words.is_empty() {
                "denied".to_owned()
            } else {
                words.join("; ")
            })
        }
        Ok(PolicyAction::Convert) => {
            Err("it wants another source instead, which is not supported yet".into())
        }
        Err(_) => Err(format!("unknown decision {}", decision.action)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::sourcepolicy::policysession::DenyMessage;

    #[test]
    fn only_a_clear_yes_allows() {
        let decision = |action: i32, words: &[&str]| DecisionResponse {
            action,
            deny_messages: words
                .iter()
                .map(|word| DenyMessage {
                    message: (*word).into(),
                })
                .collect(),
            update: None,
        };
        assert_eq!(decide(&decision(0, &[])), Ok(()));
        assert_eq!(decide(&decision(1, &[])), Err("denied".into()));
        assert_eq!(
            decide(&decision(1, &["old", "unsigned"])),
            Err("old; unsigned".into())
        );
        assert!(decide(&decision(2, &[])).is_err_and(|why| why.contains("not supported")));
        assert!(decide(&decision(77, &[])).is_err());
    }
}
