use super::*;

fn warned(text: &str) -> Vec<String> {
    parse(text).expect("usable").1
}

fn refused(text: &str) -> String {
    parse(text).expect_err("refused")
}

#[test]
fn keys_that_work() {
    let text = r#"
        root = "/srv/b"
        insecure-entitlements = ["network.host", "device"]
        [log]
        format = "json"
        level = "debug"
        [dns]
        nameservers = ["1.1.1.1", "fd00::1"]
        options = ["edns0"]
        searchDomains = ["example.com"]
        [grpc]
        address = ["tcp://0.0.0.0:1234", "unix:///run/b.sock"]
        debugAddress = "127.0.0.1:6060"
        uid = 7
        gid = 0o10
        [grpc.tls]
        cert = "c.pem"
        key = "k.pem"
        ca = "ca.pem"
        [cdi]
        disabled = true
        specDirs = ["/etc/cdi"]
        [history]
        maxAge = 172800
        maxEntries = 5
        [worker.oci]
        enabled = true
        platforms = ["linux/amd64", "linux/arm64"]
        snapshotter = "auto"
        rootless = false
        noProcessSandbox = false
        gc = true
        reservedSpace = "30%"
        maxUsedSpace = 1_000
        minFreeSpace = "20GB"
        binary = "crun"
        max-parallelism = 4
        networkMode = "host"
        defaultCgroupParent = "builds"
        [worker.oci.labels]
        foo = "bar"
        [[worker.oci.gcpolicy]]
        keepBytes = "1GB"
        keepDuration = "48h"
        filters = ["type==source.local"]
        [[worker.oci.gcpolicy]]
        all = true
        maxUsedSpace = 1024000000
        [worker.containerd]
        enabled = false
        [registry."docker.io"]
        mirrors = ["m.example:5000", "n.example/hub"]
        http = true
        insecure = true
        ca = ["my.pem"]
        tlsconfigdir = ["/etc/certs.d/docker.io"]
        [[registry."docker.io".keypair]]
        key = "key.pem"
        cert = "cert.pem"
        [frontend."dockerfile.v0"]
        enabled = false
        [frontend."gateway.v0"]
        enabled = true
        allowedRepositories = ["docker.io/a/b"]
    "#;
    let (file, warnings) = parse(text).expect("all of it works");
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(file.root.as_deref(), Some(Path::new("/srv/b")));
    assert_eq!(
        file.entitlements.as_deref(),
        Some(&["network.host".into(), "device".into()][..])
    );
    assert_eq!(file.log.format.as_deref(), Some("json"));
    assert_eq!(file.dns.map(|dns| dns.nameservers.len()), Some(2));
    assert_eq!((file.grpc.uid, file.grpc.gid), (Some(7), Some(8)));
    assert_eq!(file.grpc.address.len(), 2);
    assert_eq!(file.grpc.ca.as_deref(), Some(Path::new("ca.pem")));
    assert_eq!(file.cdi.disabled, Some(true));
    assert_eq!(file.history.max_age, Some(Duration::from_secs(172_800)));
    assert_eq!(file.history.max_entries, Some(5));
    let worker = file.worker;
    assert_eq!(worker.network, NetworkMode::Host);
    assert_eq!(worker.platforms.len(), 2);
    assert_eq!(worker.max_parallelism, Some(4));
    assert_eq!(worker.labels["foo"], "bar");
    assert_eq!(worker.gc.limits.reserved, Some(Space::Percent(30)));
    assert_eq!(worker.gc.limits.max_used, Some(Space::Bytes(1000)));
    let policies = worker.gc.policies(1 << 40);
    assert_eq!(policies.len(), 2);
    assert_eq!(policies[0].reserved, Some(Space::Bytes(1 << 30)));
    assert!(policies[1].all);
    let registry = &file.registry["docker.io"];
    assert!(registry.http && registry.insecure);
    assert_eq!((registry.keypair.len(), registry.tls_config_dirs.len()), (1, 1));
    assert!(!file.frontends.has_dockerfile && file.frontends.has_gateway);
}

#[test]
fn keys_without_effect_are_named_with_their_place() {
    for (text, expected) in [
        (
            "[otel]\nsocketPath = \"/run/x\"",
            "line 2, column 1: otel.socketPath: steps",
        ),
        (
            "[worker.oci]\n  cniPoolSize = 16",
            "line 2, column 3: worker.oci.cniPoolSize: ",
        ),
        ("[worker.oci]\nrootless = true", "worker.oci.rootless: "),
        (
            "[worker.oci]\nsnapshotter = \"native\"",
            "worker.oci.snapshotter: \"native\" is not used",
        ),
        (
            "[worker.containerd]\nenabled = true",
            "worker.containerd.enabled: there is no containerd",
        ),
        ("[ghacache.sign]\ncmd = \"x\"", "ghacache: there is no cache"),
        (
            "[registry.\"a\"]\nmiror = []",
            "line 2, column 1: registry.a.miror: no such key",
        ),
        ("typo = 1", "line 1, column 1: typo: no such key"),
    ] {
        let warnings = warned(text);
        assert!(
            warnings.len() == 1 && warnings[0].contains(expected),
            "{text}: {warnings:?}"
        );
    }
}

#[test]
fn what_cannot_be_done_is_refused_with_its_place() {
    for (text, expected) in [
        (
            "[worker.oci]\nselinux = true",
            "line 2, column 11: worker.oci.selinux",
        ),
        (
            "[worker.oci]\nenabled = false",
            "worker.oci.enabled: there is no other worker",
        ),
        (
            "[worker.oci]\nnetworkMode = \"cni\"",
            "worker.oci.networkMode: plugins of CNI",
        ),
        (
            "[worker.oci]\napparmor-profile = \"x\"",
            "line 2, column 20: worker.oci.apparmor-profile: ",
        ),
        ("[worker.oci]\nselinux = true", "worker.oci.selinux: "),
        (
            "[worker.oci]\nplatforms = [\"a/b/c/d/e\"]",
            "worker.oci.platforms: ",
        ),
        (
            "[worker.oci]\nmax-parallelism = -1",
            "worker.oci.max-parallelism: out of range",
        ),
        (
            "[worker.oci]\nreservedSpace = \"x\"",
            "worker.oci.reservedSpace: ",
        ),
        (
            "[worker.oci]\ngc = \"yes\"",
            "worker.oci.gc: must be true or false, not string",
        ),
        (
            "[[worker.oci.gcpolicy]]\nfilters = [\"colour==red\"]",
            "worker.oci.gcpolicy[0].filters: ",
        ),
        (
            "[dns]\nnameservers = [\"one\"]",
            "dns.nameservers: \"one\" is not an address",
        ),
        (
            "[history]\nmaxEntries = \"5\"",
            "history.maxEntries: must be a number",
        ),
        (
            "[[registry.a.keypair]]\nkey = \"k\"",
            "registry.a.keypair[0].key, cert: both must be said",
        ),
        ("registry = 3", "registry: must be a table, not integer"),
        ("root = ", ""),
    ] {
        let error = refused(text);
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn what_provenance_states_beside() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = DaemonFile {
        provenance_env_dir: Some(folder.path().to_owned()),
        ..DaemonFile::default()
    };
    for (name, text) in [
        ("b.json", r#"{"a":2,"b":3}"#),
        ("a.json", r#"{"a":1}"#),
        ("README", "no"),
    ] {
        std::fs::write(folder.path().join(name), text).expect("written");
    }
    let said = file.provenance_environment().expect("objects");
    assert_eq!((&said["a"], &said["b"], said.len()), (&2.into(), &3.into(), 2));
    std::fs::write(folder.path().join("c.json"), "[]").expect("written");
    let error = file.provenance_environment().expect_err("a list");
    assert!(error.to_string().contains("c.json"), "{error}");
    let nothing = DaemonFile {
        provenance_env_dir: Some("/nonexistent".into()),
        ..DaemonFile::default()
    };
    assert_eq!(nothing.provenance_environment().expect("nothing").len(), 0);
}

#[test]
fn every_refusal_is_told_at_once() {
    let error = refused("[worker.oci]\nenabled = false\nselinux = true");
    assert_eq!(error.lines().count(), 2, "{error}");
}

#[test]
fn what_asks_for_nothing_is_not_worth_a_word() {
    let text = "proxyNetwork = false\n[worker.oci]\nselinux = false\napparmor-profile = \"\"\nbinary = \"\"\ncniPoolSize = 0";
    assert_eq!(warned(text), Vec::<String>::new());
}

#[test]
fn names_are_compared_without_case() {
    let (file, warnings) =
        parse("[History]\nmaxentries = 3\n[worker.OCI]\nReservedSpace = 5").expect("valid");
    assert_eq!(file.history.max_entries, Some(3));
    assert_eq!(file.worker.gc.limits.reserved, Some(Space::Bytes(5)));
    assert_eq!(warnings, Vec::<String>::new());
}

#[test]
fn old_names_of_levels() {
    for (text, level) in [
        ("debug = true", Some("debug")),
        ("debug = true\ntrace = true", Some("trace")),
        ("debug = true\n[log]\nlevel = \"warn\"", Some("warn")),
        ("debug = false", None),
    ] {
        assert_eq!(
            parse(text).expect("valid").0.log.level.as_deref(),
            level,
            "{text}"
        );
    }
}

#[test]
fn a_file_that_was_named_must_be_there() {
    let environment = Environment::of(&[("HOME", "/nonexistent")]);
    assert!(DaemonFile::load(None, &environment).is_ok());
    assert!(DaemonFile::load(Some(Path::new("/nonexistent/b.toml")), &environment).is_err());
}

#[test]
fn limits_of_registries_and_devices_that_need_no_leave() {
    let text = "[system]\nmaxRegistryConcurrency = 4\n[cdi]\nautoAllowed = [\"vendor.com/gpu\", \"vendor.com/net=eth\"]";
    let (file, warnings) = parse(text).expect("valid");
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(file.registry_parallelism, Some(4));
    assert_eq!(file.cdi.auto_allowed, ["vendor.com/gpu", "vendor.com/net=eth"]);
    let (file, _) = parse("[system]\nmaxRegistryConcurrency = 0").expect("valid");
    assert_eq!(file.registry_parallelism, None);
}
