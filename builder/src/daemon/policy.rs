//! Who decides about the sources of a daemon's build: the rules of its requests, then a client that is asked.
//!
//! ```text
//! source ─▶ rules ─▶ CheckPolicy over the policy's session ─┬─ ALLOW
//!              ▲                 ▲                          ├─ DENY: the build fails, with the client's words
//!              │                 └── metadata it asks for ◀─┤
//!              └────────────────── another source ◀─────────┴─ CONVERT
//! ```
use super::builds::Build;
use super::run::Runner;
use super::source_meta::{self, Asker};
use crate::build::{Denied, Guard, Rules, Scope, ScopeRequest, judge_request, normalized};
use api::gateway::{ResolveSourceMetaRequest, ResolveSourceMetaResponse};
use api::sourcepolicy::PolicyAction;
use api::sourcepolicy::policysession::check_policy_response::Result as Answer;
use api::sourcepolicy::policysession::policy_verifier_client::PolicyVerifierClient;
use api::sourcepolicy::policysession::{CheckPolicyRequest, DecisionResponse};
use async_trait::async_trait;
use llb::op::SourceOp;
use oci::Platform;
use std::sync::{Arc, OnceLock, Weak};
use tonic::transport::Channel;
use worker::proxy::RequestPolicy;

/// The method a client must offer to decide.
const METHOD: &str = "/moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier/CheckPolicy";
/// Questions back and forth about one source before giving up.
const MAX_ROUNDS: usize = 10;

/// What a build's request says about its sources.
#[derive(Clone, Debug, Default)]
pub(super) struct Policy {
    /// The rules it came with.
    pub(super) rules: Rules,
    /// The session that decides beside; empty: nobody does.
    pub(super) decider: String,
}

/// Who decides for a build, with the rules of one call beside those of the build; `None` if nobody does.
pub(super) fn guard(runner: &Arc<Runner>, build: &Arc<Build>, beside: Rules) -> Option<Arc<dyn Guard>> {
    let rules = build.policy.rules.and(beside);
    if rules.is_empty() && build.policy.decider.is_empty() {
        return None;
    }
    Some(Arc::new(Judge {
        runner: runner.clone(),
        build: build.clone(),
        rules,
    }))
}

/// Judges the requests of a build's steps as its sources are judged.
#[derive(Default)]
pub(super) struct RequestJudge {
    build: OnceLock<(Weak<Runner>, Weak<Build>)>,
}

impl RequestJudge {
    /// Tells it whose requests they are. The build holds the judge, so the judge does not hold the build.
    pub(super) fn begin(&self, runner: &Arc<Runner>, build: &Arc<Build>) {
        // There is one build for each judge.
        let _ = self.build.set((Arc::downgrade(runner), Arc::downgrade(build)));
    }
}

#[async_trait]
impl RequestPolicy for RequestJudge {
    async fn judge(&self, address: &str) -> Result<Option<String>, String> {
        let known = self
            .build
            .get()
            .and_then(|(runner, build)| Some((runner.upgrade()?, build.upgrade()?)));
        let Some((runner, build)) = known else {
            return Err("the build is over".to_owned());
        };
        match guard(&runner, &build, Rules::default()) {
            Some(guard) => judge_request(&*guard, address).await,
            None => Ok(None),
        }
    }
}

struct Judge {
    runner: Arc<Runner>,
    build: Arc<Build>,
    rules: Rules,
}

/// What the client that decides wants.
enum Verdict {
    Allow,
    Convert(SourceOp),
}

#[async_trait]
impl Guard for Judge {
    async fn decide(&self, source: SourceOp, platform: Option<&Platform>) -> Result<SourceOp, Denied> {
        let first = normalized(source.clone());
        let mut wanted = self.rules.apply(first.clone())?;
        if !self.build.policy.decider.is_empty() {
            let mut rounds = 0;
            while let Verdict::Convert(other) = self.ask(&wanted, platform, &mut rounds).await? {
                wanted = self.rules.apply(normalized(other))?;
            }
        }
        Ok(if wanted == first { source } else { wanted })
    }
}

impl Judge {
    async fn client(
        &self,
        refused: impl Fn(&str) -> Denied,
    ) -> Result<PolicyVerifierClient<Channel>, Denied> {
        let caller = self
            .runner
            .sessions
            .get(&self.build.policy.decider)
            .await
            .map_err(|error| refused(&error.to_string()))?;
        if !caller.offers(METHOD) {
            return Err(refused("the session named for it does not decide about sources"));
        }
        Ok(PolicyVerifierClient::new(caller.channel()))
    }

    /// Asks the client about one source, until it has decided.
    async fn ask(
        &self,
        source: &SourceOp,
        platform: Option<&Platform>,
        rounds: &mut usize,
    ) -> Result<Verdict, Denied> {
        let identifier = &source.identifier;
        let refused = |why: &str| Denied::new(format!("source {identifier:?} not allowed by policy: {why}"));
        let mut client = self.client(refused).await?;
        let mut known = ResolveSourceMetaResponse {
            source: Some(source_meta::wire(source.clone())),
            ..ResolveSourceMetaResponse::default()
        };
        loop {
            *rounds += 1;
            if *rounds > MAX_ROUNDS {
                return Err(refused("too many policy requests"));
            }
            let platform = platform.cloned().unwrap_or_else(Platform::host);
            let question = CheckPolicyRequest {
                platform: Some(super::worker_info::platform(&platform)),
                source: Some(known),
                ..CheckPolicyRequest::default()
            };
            let answer = tokio::select! {
                biased;
                () = self.build.cancel.cancelled() => return Err(Denied::new("context canceled")),
                answer = client.check_policy(question) => answer.map_err(|status| refused(status.message()))?,
            };
            match answer.into_inner().result {
                Some(Answer::Decision(decision)) => return verdict(identifier, decision),
                Some(Answer::Request(wanted)) => {
                    known = self.find_out(wanted, source).await.map_err(|why| refused(&why))?;
                }
                None => return Err(refused("no decision in policy response")),
            }
        }
    }

    /// What the client wants to know of the source.
    async fn find_out(
        &self,
        wanted: ResolveSourceMetaRequest,
        source: &SourceOp,
    ) -> Result<ResolveSourceMetaResponse, String> {
        if let Some(named) = &wanted.source {
            if named.identifier != source.identifier {
                return Err(format!(
                    "policy requested different source identifier: {:?} != {:?}",
                    named.identifier, source.identifier
                ));
            }
            if named.attrs != source.attrs {
                return Err("policy requested different source attrs".into());
            }
        }
        let wanted = ResolveSourceMetaRequest {
            source: Some(source_meta::wire(source.clone())),
            ..wanted
        };
        // The source is being decided about: nobody is to be asked whether it may be looked at.
        let asker = Asker {
            engine: &self.runner.engine,
            build: &self.build,
            scope: &Scope::outermost(ScopeRequest::default()),
        };
        asker.resolve(wanted, None).await.map_err(|status| {
            format!(
                "error resolving source metadata from policy request: {}",
                status.message()
            )
        })
    }
}

/// What a decision means.
fn verdict(identifier: &str, decision: DecisionResponse) -> Result<Verdict, Denied> {
    let name = match PolicyAction::try_from(decision.action) {
        Ok(PolicyAction::Allow) => return Ok(Verdict::Allow),
        Ok(PolicyAction::Convert) => {
            let other = decision
                .update
                .ok_or_else(|| Denied::new("convert action requires updated source"))?;
            return Ok(Verdict::Convert(SourceOp {
                identifier: other.identifier,
                attrs: other.attrs,
            }));
        }
        Ok(PolicyAction::Deny) => "DENY".to_owned(),
        Err(_) => decision.action.to_string(),
    };
    let words: Vec<String> = decision
        .deny_messages
        .into_iter()
        .map(|one| one.message)
        .collect();
    let mut message = format!("source {identifier:?} not allowed by policy: action {name}");
    // Differs: BuildKit's message leaves the words to clients that know the detail they are in.
    if !words.is_empty() {
        message = format!("{message}: {}", words.join("; "));
    }
    Err(Denied { message, words })
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::sourcepolicy::policysession::DenyMessage;

    #[test]
    fn only_a_clear_yes_allows() {
        let of = |action: i32, words: &[&str]| {
            let decision = DecisionResponse {
                action,
                deny_messages: words
                    .iter()
                    .map(|word| DenyMessage {
                        message: (*word).into(),
                    })
                    .collect(),
                update: None,
            };
            verdict("a://b", decision)
                .map(drop)
                .map_err(|denied| denied.message)
        };
        let denied = "source \"a://b\" not allowed by policy: action DENY";
        assert_eq!(of(0, &[]), Ok(()));
        assert_eq!(of(1, &[]), Err(denied.into()));
        assert_eq!(
            of(1, &["old", "unsigned"]),
            Err(format!("{denied}: old; unsigned"))
        );
        assert_eq!(of(2, &[]), Err("convert action requires updated source".into()));
        assert!(of(77, &[]).is_err());
    }
}
