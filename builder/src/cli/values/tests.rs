//! Every form of every value, good and bad.
use super::*;

#[test]
fn comma_separated_values() {
    for (text, expected) in [
        ("a,b", Some(vec!["a", "b"])),
        ("", Some(vec![""])),
        ("\"a,b\",c", Some(vec!["a,b", "c"])),
        ("\"say \"\"hi\"\"\"", Some(vec!["say \"hi\""])),
        ("\"open", None),
        ("\"a\"b", None),
        ("a\"b", None),
    ] {
        let fields = fields("-o", text).ok();
        assert_eq!(
            fields,
            expected.map(|list| list.into_iter().map(str::to_owned).collect()),
            "{text}"
        );
    }
}

#[test]
fn hosts() {
    for (text, expected) in [
        ("db:10.0.0.7", Some("db=10.0.0.7")),
        ("db=10.0.0.7", Some("db=10.0.0.7")),
        ("db:2001:db8::7", Some("db=2001:db8::7")),
        ("db=[2001:db8::7]", Some("db=2001:db8::7")),
        ("db:host-gateway", Some("db=host-gateway")),
        ("db", None),
        (":1.2.3.4", None),
        ("db:999.1.1.1", None),
    ] {
        let shown = add_host(text)
            .ok()
            .map(|(name, address)| format!("{name}={address}"));
        assert_eq!(shown.as_deref(), expected, "{text}");
    }
}

#[test]
fn limits() {
    for (text, expected) in [
        ("nofile=1024", Some("nofile=1024:1024")),
        ("nofile=1024:2048", Some("nofile=1024:2048")),
        ("nofile=1024:-1", Some("nofile=1024:-1")),
        ("core=-1", Some("core=-1:-1")),
        ("nofile=2048:1024", None),
        ("nofile=-1:5", None),
        ("nofile", None),
        ("files=1", None),
        ("nofile=x", None),
    ] {
        assert_eq!(
            ulimit(text).ok().map(|limit| limit.to_string()).as_deref(),
            expected,
            "{text}"
        );
    }
}

#[test]
fn secrets() {
    let environment = Environment::of(&[("TOKEN", "value"), ("HOME", "/nonexistent")]);
    let value = |text: &str| SecretSource::Value(Secret::from(text.to_owned()));
    for (text, expected) in [
        ("id=TOKEN", Some(("TOKEN", value("value")))),
        ("id=t,env=TOKEN", Some(("t", value("value")))),
        ("id=t,type=env,src=TOKEN", Some(("t", value("value")))),
        (
            "id=t,src=/dev/null",
            Some(("t", SecretSource::File("/dev/null".into()))),
        ),
        (
            "id=t,source=/dev/null,type=file",
            Some(("t", SecretSource::File("/dev/null".into()))),
        ),
        ("id=t,env=UNSET", None),
        ("id=t,src=/no/such/file", None),
        ("id=t,src=/dev/null,env=TOKEN", None),
        ("src=/dev/null", None),
        ("t", None),
        ("id=t,typ=env", None),
    ] {
        let found = secret(text, &environment).ok();
        assert_eq!(
            found,
            expected.map(|(id, source)| (id.to_owned(), source)),
            "{text}"
        );
    }
}

#[test]
fn a_key_file_is_refused_with_a_way_out() {
    let error = ssh("default=/dev/null", &Environment::of(&[])).expect_err("no key");
    assert!(
        error
            .to_string()
            .contains("neither an agent's socket nor a private key"),
        "{error}"
    );
    assert!(ssh("default", &Environment::of(&[])).is_err());
    assert!(ssh("", &Environment::of(&[])).is_err());
}

#[test]
fn annotations() {
    for (text, expected) in [
        ("a=b", Some(vec!["annotation-manifest.a=b"])),
        ("index:a=b", Some(vec!["annotation-index.a=b"])),
        (
            "index,manifest:a=b",
            Some(vec!["annotation-index.a=b", "annotation-manifest.a=b"]),
        ),
        (
            "manifest[linux/arm64]:a=b",
            Some(vec!["annotation-manifest[linux/arm64].a=b"]),
        ),
        ("org:x=b", Some(vec!["annotation-manifest.org:x=b"])),
        ("index[linux/arm64]:a=b", None),
        ("manifest[linux:a=b", None),
        ("index,bogus:a=b", None),
        ("a", None),
    ] {
        let found = annotation(text).ok();
        let found = found.map(|list| {
            list.into_iter()
                .map(|(k, v)| format!("{k}={v}"))
                .collect::<Vec<_>>()
        });
        assert_eq!(
            found,
            expected.map(|list| list.into_iter().map(str::to_owned).collect()),
            "{text}"
        );
    }
}

#[test]
fn build_arguments_may_come_from_the_environment() {
    let environment = Environment::of(&[("WHO", "env")]);
    let values = [
        "WHO".to_owned(),
        "UNSET".to_owned(),
        "A=b=c".to_owned(),
        "E=".to_owned(),
    ];
    let args = build_args(&values, &environment).expect("valid");
    let shown: Vec<_> = args.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(shown, ["A=b=c", "E=", "WHO=env"]);
    assert!(build_args(&["=x".to_owned()], &environment).is_err());
}

#[test]
fn entitlements_and_networks_by_name() {
    assert!(
        entitlements(&["network.host,security.insecure".into()])
            .expect("known")
            .security_insecure
    );
    assert!(entitlements(&["network".into()]).is_err());
    for (value, expected) in [
        ("network.host", Some(vec![])),
        ("device", Some(vec![""])),
        ("network.host,device", Some(vec![""])),
        (
            "device=v.com/gpu=a,alias=gpu",
            Some(vec!["v.com/gpu=a,alias=gpu"]),
        ),
        ("device=v.com/gpu=a,size=3", None),
    ] {
        let found = devices(&[value.to_owned()]).ok();
        assert_eq!(
            found,
            expected.map(|list| list.into_iter().map(str::to_owned).collect()),
            "{value}"
        );
    }
    assert_eq!(network("none").ok(), Some(NetworkMode::None));
    assert!(network("bridge").is_err());
}

#[test]
fn resources() {
    assert_eq!(resource("-m", "memory", "64m").expect("valid").1, "67108864");
    assert_eq!(
        resource("--resource", "memory-swap", "-1").expect("valid").0,
        "memswap"
    );
    assert!(resource("--resource", "gpu", "1").is_err());
    assert!(resource("--resource", "cpu-quota", "lots").is_err());
}
