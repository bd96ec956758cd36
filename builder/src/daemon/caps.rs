//! What this daemon says it can do, by the names clients know.
//!
//! ```text
//! Ping ─▶ what a frontend may ask (FRONTEND), what definitions may hold and outputs can do (llb::caps, OUTPUT)
//! ```
//!
//! A client refuses to ask for what is not listed, so nothing is listed that is not there. The test holds the lists against
//! all names BuildKit has, and says of each that is not here why.
use api::apicaps::ApiCap;

/// What a frontend may ask of this daemon.
const FRONTEND: &[&str] = &[
    "frontend.caps",
    "frontend.inputs",
    "gateway.evaluate",
    "gateway.exec",
    "gateway.exec.extrahosts",
    "gateway.exec.filesystem",
    "gateway.exec.secretenv",
    "gateway.exec.signals",
    "gateway.solve.evaluate",
    "gateway.solve.metadata",
    "gateway.warnings",
    "importcaches",
    "proto.refarray",
    "readdir",
    "readfile",
    "reference.attestations",
    "reference.output",
    "resolveimage",
    "resolveimage.resolvemode",
    "return",
    "returnmap",
    "solve.base",
    "solve.inlinereturn",
    "source.metaresolver",
    "source.metaresolver.http.checksumrequest",
    "source.metaresolver.image.attestations",
    "statfile",
];
/// What this daemon's outputs and services can do, beside the ops of a definition.
const OUTPUT: &[&str] = &[
    "exporter.image.annotations",
    "exporter.image.attestations",
    "exporter.multiple",
    "exporter.sourcedateepoch",
    "gc.freespacefilter",
    "history.filter",
    "source.policy",
    "source.policy.session",
];

/// What a frontend may ask.
pub(super) fn frontend() -> Vec<ApiCap> {
    FRONTEND.iter().map(enabled).collect()
}

/// What definitions may hold, and outputs can do.
pub(super) fn definition() -> Vec<ApiCap> {
    llb::caps::SUPPORTED.iter().chain(OUTPUT).map(enabled).collect()
}

fn enabled(id: &&str) -> ApiCap {
    ApiCap {
        id: (*id).to_owned(),
        enabled: true,
        ..ApiCap::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Names BuildKit has of August 2026 that are not here, and why.
    const NOT_HERE: &[(&str, &str)] = &[
        ("cache.azblob", "refused by name"),
        ("cache.gha", "refused by name"),
        ("cache.s3", "refused by name"),
        ("exec.meta.security.devices.v1", "nothing of BuildKit asks for it"),
        ("exporter.session", "outputs that clients bring along themselves"),
        ("source.git.bundle", "repositories out of blobs"),
        ("source.git.checkoutbundle", "repositories as bundles"),
        ("source.git.signatureverify", "signatures are not verified"),
        ("source.http.signatureverify", "signatures are not verified"),
    ];

    /// The other names BuildKit has, each of which must be here.
    const HERE: &str = "
        constraints diffop exec.cgroup exec.meta.base exec.meta.cdi exec.meta.cgroup.parent exec.meta.linux.resources
        exec.meta.network exec.meta.network.proxy exec.meta.proxyenv exec.meta.removemountstubs.recursive exec.meta.security
        exec.meta.setsdefaultpath exec.meta.ulimit exec.mount.bind exec.mount.bind.readwrite-nooutput exec.mount.cache
        exec.mount.cache.content exec.mount.cache.sharing exec.mount.secret exec.mount.selector exec.mount.ssh
        exec.mount.tmpfs exec.mount.tmpfs.size exec.secretenv exec.validexitcode exporter.image.annotations
        exporter.image.attestations exporter.multiple exporter.sourcedateepoch file.base
        file.copy.alwaysreplaceexistingdestpaths file.copy.includeexcludepatterns file.copy.modestring
        file.copy.requiredpaths file.rm.nofollowsymlink file.rm.wildcard file.symlink.create frontend.caps frontend.inputs
        gateway.evaluate gateway.exec gateway.exec.extrahosts gateway.exec.filesystem gateway.exec.secretenv
        gateway.exec.signals gateway.solve.evaluate gateway.solve.metadata gateway.warnings gc.freespacefilter
        history.filter importcaches mergeop meta.description meta.exportcache meta.ignorecache passthroughop platform
        proto.refarray readdir readfile reference.attestations reference.output resolveimage resolveimage.resolvemode return
        returnmap solve.base solve.inlinereturn soruce.http.uidgid source.buildop.llbfilename source.git source.git.checksum
        source.git.fetchbycommit source.git.fullurl source.git.httpauth source.git.keepgitdir source.git.knownsshhosts
        source.git.mountsshsock source.git.mtime source.git.skipsubmodules source.git.subdir source.http source.http.auth
        source.http.checksum source.http.header source.http.perm source.image source.image.checksum source.image.layerlimit
        source.image.resolvemode source.imageblob source.local source.local.differ source.local.excludepatterns
        source.local.followpaths source.local.includepatterns source.local.metadatatransfer source.local.sessionid
        source.local.sharedkeyhint source.local.unique source.metaresolver source.metaresolver.http.checksumrequest
        source.metaresolver.image.attestations source.ocilayout source.policy source.policy.session statfile";

    #[test]
    fn every_name_of_buildkit_is_here_or_not_for_a_reason() {
        let ours: Vec<&str> = FRONTEND
            .iter()
            .chain(OUTPUT)
            .chain(llb::caps::SUPPORTED)
            .copied()
            .collect();
        let all: BTreeSet<&str> = ours.iter().copied().collect();
        assert_eq!(ours.len(), all.len(), "none is listed twice");
        assert_eq!(all, HERE.split_whitespace().collect::<BTreeSet<_>>());
        for (name, why) in NOT_HERE {
            assert!(
                !all.contains(name),
                "{name} is here, but is said not to be: {why}"
            );
        }
    }
}
