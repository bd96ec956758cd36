//! Statements that frontends and scanners make of a result, in files of other results.
//!
//! ```text
//! Return, Dockerfile's answer ─▶ FrontendClaim { ref, path } ─ solved, read ─▶ export::Attestation
//! attest:sbom ─▶ scanner's run ──┘
//! ```
use super::builds::Build;
use super::errors::Failure;
use super::result::{LazyRef, Solved};
use super::run::{Runner, id};
use crate::build::attest::{Claim, SPDX, Sbom, ScanError, Scanner, core_first};
use crate::build::{Bridge, Guard, Scope, guarded, permissions};
use api::gateway::{Attestation as Wire, AttestationKind, InTotoSubject, InTotoSubjectKind, Ref};
use bytes::Bytes;
use llb::Definition;
use std::collections::BTreeMap;
use std::sync::Arc;
use tonic::Code;
use worker::export::{PlatformResult, Subject};

/// Metadata of a claim: the name of the file that says what is in the result itself.
const CORE: &str = "sbom-core";
/// Whether it is for images only.
const INLINE_ONLY: &str = "inline-only";
/// What it was made for.
const REASON: &str = "reason";
/// No platform's result may have more claims.
const MAX_CLAIMS: usize = 1_000;

/// A claim and the result whose files make it.
#[derive(Clone, Debug)]
pub(super) struct FrontendClaim {
    claim: Claim,
    metadata: BTreeMap<String, Bytes>,
    pub(super) files: Option<Arc<LazyRef>>,
}

impl FrontendClaim {
    /// What a frontend says.
    pub(super) fn of_wire(build: &Build, wire: Wire) -> Result<FrontendClaim, Failure> {
        let invalid = |what: String| Failure::new(Code::InvalidArgument, what);
        let kind = AttestationKind::try_from(wire.kind)
            .map_err(|_| invalid(format!("unknown attestation kind {}", wire.kind)))?;
        let named = wire.r#ref.filter(|one| !one.id.is_empty());
        let subjects = wire
            .in_toto_subjects
            .into_iter()
            .map(|subject| subject_of(&subject));
        let text = |key: &str| {
            let value = wire.metadata.get(key)?;
            Some(String::from_utf8_lossy(value).into_owned())
        };
        Ok(FrontendClaim {
            claim: Claim {
                is_bundle: kind == AttestationKind::Bundle,
                path: wire.path,
                predicate_type: wire.in_toto_predicate_type,
                subjects: subjects.collect::<Result<_, _>>().map_err(invalid)?,
                core: text(CORE),
                is_inline_only: text(INLINE_ONLY).as_deref() == Some("true"),
            },
            files: named.map(|one| build.find_ref(&one.id)).transpose()?,
            metadata: wire.metadata,
        })
    }

    /// The same on the wire.
    pub(super) fn to_wire(&self) -> Wire {
        let kind = match self.claim.is_bundle {
            true => AttestationKind::Bundle,
            false => AttestationKind::InToto,
        };
        Wire {
            kind: kind.into(),
            metadata: self.metadata.clone(),
            r#ref: self.files.as_ref().map(|one| Ref {
                id: one.id.clone(),
                def: Some(one.definition.to_proto()),
            }),
            path: self.claim.path.clone(),
            in_toto_predicate_type: self.claim.predicate_type.clone(),
            in_toto_subjects: self.claim.subjects.iter().map(wire_subject).collect(),
        }
    }
}

/// All claims of a frontend's result, by platform.
pub(super) fn of_wire(
    build: &Build,
    wire: BTreeMap<String, api::gateway::Attestations>,
) -> Result<BTreeMap<String, Vec<FrontendClaim>>, Failure> {
    let of_platform = |(platform, claims): (String, api::gateway::Attestations)| {
        if claims.attestation.len() > MAX_CLAIMS {
            let limit = format!("a result may have at most {MAX_CLAIMS} attestations");
            return Err(Failure::new(Code::ResourceExhausted, limit));
        }
        let claims = claims.attestation.into_iter();
        let claims = claims.map(|claim| FrontendClaim::of_wire(build, claim));
        Ok((platform, claims.collect::<Result<_, _>>()?))
    };
    wire.into_iter().map(of_platform).collect()
}

fn subject_of(wire: &InTotoSubject) -> Result<Subject, String> {
    let kind = InTotoSubjectKind::try_from(wire.kind)
        .map_err(|_| format!("unknown attestation subject type {}", wire.kind))?;
    if kind == InTotoSubjectKind::Self_ {
        return Ok(Subject::Itself {
            name: wire.name.clone(),
        });
    }
    let digests = wire.digest.iter().map(|digest| {
        let parts = digest.split_once(':');
        let (algorithm, hex) = parts.ok_or_else(|| format!("{digest:?} is no digest"))?;
        Ok((algorithm.to_owned(), hex.to_owned()))
    });
    Ok(Subject::Other {
        name: wire.name.clone(),
        digests: digests.collect::<Result<_, String>>()?,
    })
}

fn wire_subject(subject: &Subject) -> InTotoSubject {
    match subject {
        Subject::Itself { name } => InTotoSubject {
            kind: InTotoSubjectKind::Self_.into(),
            digest: Vec::new(),
            name: name.clone(),
        },
        Subject::Other { name, digests } => InTotoSubject {
            kind: InTotoSubjectKind::Raw.into(),
            digest: digests
                .iter()
                .map(|(algorithm, hex)| format!("{algorithm}:{hex}"))
                .collect(),
            name: name.clone(),
        },
    }
}

/// Reads what is claimed of each platform's result.
pub(super) async fn read(
    build: &Build,
    solved: &Solved,
    platforms: &mut [PlatformResult],
) -> Result<(), Failure> {
    for platform in platforms {
        let claims = solved.claims.get(&platform.id);
        for one in claims.into_iter().flatten() {
            let files = match &one.files {
                Some(files) => files.evaluate(build).await?,
                None => None,
            };
            let unreadable = |error: &dyn std::fmt::Display| Failure::new(Code::Unknown, error.to_string());
            let view = match &files {
                Some(files) => {
                    let meter: Arc<dyn cache::Meter> = Arc::new(cache::NoMeter);
                    Some(files.view(&meter).await.map_err(|error| unreadable(&error))?)
                }
                None => None,
            };
            let claim = one.claim.clone();
            let reading = tokio::task::spawn_blocking(move || claim.read(view.as_ref()));
            let stated = reading.await.map_err(|error| unreadable(&error))?;
            let stated = stated.map_err(|error| unreadable(&error))?;
            platform.attestations.extend(stated);
        }
        core_first(&mut platform.attestations);
    }
    Ok(())
}

/// Who scans, and what for.
pub(super) struct Scan<'a> {
    pub(super) runner: &'a Runner,
    pub(super) build: &'a Arc<Build>,
    pub(super) scope: &'a Arc<Scope>,
    pub(super) guard: Option<Arc<dyn Guard>>,
    pub(super) asked: &'a Sbom,
    /// What the frontend was told.
    pub(super) attributes: &'a BTreeMap<String, String>,
}

impl Scan<'_> {
    /// Adds a scan of each platform's result, unless somebody says already what is in them. `extras` are what else is
    /// to be looked at, by platform.
    pub(super) async fn add(
        &self,
        solved: &mut Solved,
        extras: &BTreeMap<String, Vec<(String, Definition)>>,
    ) -> Result<(), Failure> {
        let mut known = solved.claims.values().flatten();
        if known.any(|one| one.claim.predicate_type == SPDX) {
            return Ok(());
        }
        let bridge = Bridge {
            engine: &self.runner.engine,
            job: &self.build.job,
            session: self.build.session.clone(),
            definition_step: String::new(),
            scope: self.scope.clone(),
            guard: self.guard.clone(),
        };
        let mode = self.attributes.get("image-resolve-mode").map(String::as_str);
        let scanner = Scanner::find(&bridge, self.asked, mode).await.map_err(failed)?;
        // Nothing of any stage is to come from the cache.
        let ignores_cache = self.attributes.get("no-cache").is_some_and(String::is_empty);
        for (platform, core) in solved.by_platform()? {
            let extras = extras.get(&platform).map(Vec::as_slice).unwrap_or_default();
            let scan = scanner.scan(&platform, &core.definition, extras, ignores_cache);
            let mut definition = scan.map_err(failed)?;
            if let Some(guard) = &self.guard {
                let made = guarded(&**guard, &definition).await;
                definition = made.map_err(|denied| Failure::loading(&denied))?;
            }
            let graph = definition.to_graph().map_err(|error| failed(error.into()))?;
            permissions::check(&graph, Runner::granted(self.build)).map_err(Failure::from)?;
            let files = LazyRef::new(id()?, definition, self.scope);
            self.build.hold(&files)?;
            let claim = FrontendClaim {
                claim: Claim::of_scan(),
                metadata: [(REASON, "sbom"), (CORE, "sbom")]
                    .map(|(key, value)| (key.to_owned(), Bytes::from_static(value.as_bytes())))
                    .into(),
                files: Some(files),
            };
            solved.claims.entry(platform).or_default().push(claim);
        }
        Ok(())
    }
}

fn failed(error: ScanError) -> Failure {
    Failure::new(Code::Unknown, error.to_string())
}
