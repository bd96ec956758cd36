//! Names of the options of source ops, as every client and daemon writes them.

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        $($(#[$doc])* pub const $name: &str = $text;)*
    };
}

names! {
    /// git: keep the `.git` folder (`true`).
    GIT_KEEP_DIR = "git.keepgitdir";
    /// git: the address to fetch from.
    GIT_FULL_URL = "git.fullurl";
    /// git: name of the secret with an `Authorization` header.
    GIT_AUTH_HEADER_SECRET = "git.authheadersecret";
    /// git: name of the secret with a token.
    GIT_AUTH_TOKEN_SECRET = "git.authtokensecret";
    /// git: known_hosts lines.
    GIT_KNOWN_SSH_HOSTS = "git.knownsshhosts";
    /// git: which ssh agent to use.
    GIT_MOUNT_SSH_SOCK = "git.mountsshsock";
    /// git: the commit that must be found.
    GIT_CHECKSUM = "git.checksum";
    /// git: leave submodules out (`true`).
    GIT_SKIP_SUBMODULES = "git.skipsubmodules";
    /// git: file times, `checkout` or `commit`.
    GIT_MTIME = "git.mtime";
    /// git: fetch the checksum's commit without asking for the ref (`true`).
    GIT_FETCH_BY_COMMIT = "git.fetchbycommit";
    /// git: take the history from a bundle.
    GIT_BUNDLE = "git.bundle";
    /// git: give out a bundle instead of files (`true`).
    GIT_CHECKOUT_BUNDLE = "git.checkoutbundle";
    /// local: the session that has the directory.
    LOCAL_SESSION = "local.session";
    /// local: tells apart two contexts without a session.
    LOCAL_UNIQUE = "local.unique";
    /// local: JSON list of patterns to take.
    LOCAL_INCLUDE_PATTERNS = "local.includepattern";
    /// local: JSON list of paths to take, following links.
    LOCAL_FOLLOW_PATHS = "local.followpaths";
    /// local: JSON list of patterns to leave out.
    LOCAL_EXCLUDE_PATTERNS = "local.excludepatterns";
    /// local: which earlier transfer to start from.
    LOCAL_SHARED_KEY_HINT = "local.sharedkeyhint";
    /// local: how files are compared with those of the earlier transfer, `none` or `metadata`.
    LOCAL_DIFFER = "local.differ";
    /// local: send attributes only (`true`).
    LOCAL_METADATA_TRANSFER = "local.metadatatransfer";
    /// local: JSON list of patterns whose contents are sent all the same.
    LOCAL_METADATA_TRANSFER_EXCLUDE = "local.metadatatransferexclude";
    /// http: the digest the file must have.
    HTTP_CHECKSUM = "http.checksum";
    /// http: the file's name.
    HTTP_FILENAME = "http.filename";
    /// http: permission bits, octal with a leading 0.
    HTTP_PERM = "http.perm";
    /// http: owner.
    HTTP_UID = "http.uid";
    /// http: group.
    HTTP_GID = "http.gid";
    /// http: name of the secret with an `Authorization` header.
    HTTP_AUTH_HEADER_SECRET = "http.authheadersecret";
    /// http: prefix of request headers.
    HTTP_HEADER_PREFIX = "http.header.";
    /// image: `default`, `pull` or `local`.
    IMAGE_RESOLVE_MODE = "image.resolvemode";
    /// image: what the record is shown as in disk usage.
    IMAGE_RECORD_TYPE = "image.recordtype";
    /// image: how many layers to take.
    IMAGE_LAYER_LIMIT = "image.layerlimit";
    /// image: the digest the manifest must have.
    IMAGE_CHECKSUM = "image.checksum";
    /// oci-layout: the session that has the store.
    OCI_LAYOUT_SESSION = "oci.session";
    /// oci-layout: name of the store.
    OCI_LAYOUT_STORE = "oci.store";
    /// oci-layout: how many layers to take.
    OCI_LAYOUT_LAYER_LIMIT = "oci.layerlimit";
}
