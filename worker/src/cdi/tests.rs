//! Descriptions in, edited steps out.
use super::{DeviceError, DeviceGrants, Registry, apply};
use llb::op::CdiDevice;
use sandbox::Spec;
use std::path::PathBuf;

const FIRST: &str = r#"
cdiVersion: "0.6.0"
kind: "vendor.com/device"
annotations:
  org.mobyproject.buildkit.device.class: class1
containerEdits:
  env: [ "ALL=yes" ]
devices:
- name: a
  containerEdits:
    env: [ "A=1", "PATH=/device" ]
- name: b
  annotations:
    org.mobyproject.buildkit.device.autoallow: "true"
  containerEdits:
    deviceNodes:
    - path: /dev/nothing
      hostPath: /dev/null
      permissions: r
    mounts:
    - hostPath: /etc
      containerPath: /b/etc
      options: [ ro, rbind, nosuid ]
    additionalGids: [ 44 ]
"#;

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, text).expect("written");
    }
    folder
}

fn edited(registry: &Registry, grants: &[&str], wanted: &[&str]) -> Result<Spec, DeviceError> {
    let mut allowed = DeviceGrants::default();
    grants.iter().for_each(|grant| allowed.add(grant).expect("valid"));
    let wanted: Vec<CdiDevice> = wanted
        .iter()
        .map(|name| CdiDevice {
            name: name.trim_end_matches('?').to_owned(),
            optional: name.ends_with('?'),
        })
        .collect();
    let mut spec = Spec {
        env: vec!["PATH=/bin".into()],
        ..Spec::default()
    };
    apply(&mut spec, &wanted, registry, &allowed).map(|_| spec)
}

#[test]
fn devices_an_administrator_leaves_to_all() {
    let folder = folder(&[("first.yaml", FIRST)]);
    let read = |free: &[&str]| {
        let free: Vec<String> = free.iter().map(|name| (*name).to_owned()).collect();
        Registry::read(&[folder.path().to_owned()]).with_free(&free)
    };
    for (free, is_allowed) in [
        (&[][..], false),
        (&["vendor.com/device=b"], false),
        (&["vendor.com/other"], false),
        (&["vendor.com/device=a"], true),
        (&["vendor.com/device"], true),
    ] {
        let spec = edited(&read(free), &[], &["vendor.com/device=a"]);
        assert_eq!(spec.is_ok(), is_allowed, "{free:?}");
    }
}

#[test]
fn names_mean_devices_and_must_be_allowed() {
    let folder = folder(&[("one/first.yaml", FIRST), ("one/readme.txt", "not for us")]);
    let registry = Registry::read(&[folder.path().join("missing"), folder.path().join("one")]);
    assert!(registry.faults.is_empty(), "{:?}", registry.faults);
    let env = |grants: &[&str], wanted: &[&str]| {
        edited(&registry, grants, wanted)
            .map(|spec| spec.env.join(" "))
            .map_err(|error| error.to_string())
    };
    let one = Ok("PATH=/bin ALL=yes".to_owned());
    let both = Ok("A=1 PATH=/device ALL=yes".to_owned());
    let refused = Err("device vendor.com/device=a is requested by the build but not allowed".to_owned());
    let missing = |name: &str| Err(format!("required device {name:?} is not registered"));
    for (grants, wanted, expected) in [
        (&[][..], &["vendor.com/device=b"][..], one.clone()),
        (&[], &["vendor.com/device=a"], refused.clone()),
        (&[], &["vendor.com/device=*"], refused.clone()),
        (&[""], &["vendor.com/device=*"], both.clone()),
        (&["vendor.com/device=a"], &["vendor.com/device"], both.clone()),
        (&["vendor.com/device"], &["vendor.com/device=a"], both.clone()),
        (&["class1"], &["class1"], both.clone()),
        (&["vendor.com/device=a,alias=gpu"], &["gpu"], both.clone()),
        (&["vendor.com/device=b"], &["vendor.com/device=a"], refused),
        (&[""], &["vendor.com/device=c"], missing("vendor.com/device=c")),
        (
            &[""],
            &["vendor.com/device=c?", "nothing?"],
            Ok("PATH=/bin".to_owned()),
        ),
        (&[""], &["nothing"], missing("nothing")),
        (
            &[""],
            &["vendor.com/device=a", "vendor.com/device=a", "class1"],
            both,
        ),
    ] {
        assert_eq!(env(grants, wanted), expected, "{grants:?} {wanted:?}");
    }
    assert!(DeviceGrants::default().add("a,other=b").is_err());
}

#[test]
fn nodes_mounts_and_groups_reach_the_step() {
    let folder = folder(&[("first.yml", FIRST)]);
    let registry = Registry::read(&[folder.path().to_owned()]);
    let spec = edited(&registry, &[], &["vendor.com/device=b"]).expect("allowed by itself");
    let node = &spec.devices[0];
    assert_eq!(
        (node.path.as_str(), node.major, node.minor),
        ("/dev/nothing", 1, 3)
    );
    assert!(node.may_read && !node.may_write);
    let mount = &spec.mounts[0];
    assert!(mount.target == "/b/etc" && mount.readonly && mount.flags.nosuid);
    assert_eq!(spec.user.groups, [44]);
}

#[test]
fn what_is_wrong_with_a_description_is_told() {
    let json = |edits: &str| {
        format!(
            r#"{{"cdiVersion":"0.6.0","kind":"v.com/x","devices":[{{"name":"d","containerEdits":{edits}}}]}}"#
        )
    };
    let cases = [
        (json(r#"{"surprise":1}"#), "unknown field `surprise`"),
        (
            json("{}").replace("0.6.0", "9.0.0"),
            "version \"9.0.0\" is not known",
        ),
        (
            json("{}").replace("v.com/x", "vx"),
            "not of the form vendor/class",
        ),
        (json(r#"{"intelRdt":{"closID":"x"}}"#), "classes of Intel RDT"),
        (json(r#"{"netDevices":[{}]}"#), "network devices"),
        (
            json(r#"{"deviceNodes":[{"path":"/dev/x","hostPath":"/nowhere"}]}"#),
            "/nowhere: No such file",
        ),
        (
            json(r#"{"deviceNodes":[{"path":"/dev/x","hostPath":"/etc"}]}"#),
            "/etc is no device",
        ),
        (
            json(r#"{"deviceNodes":[{"path":"/dev/null","major":9}]}"#),
            "another device than described (1:3)",
        ),
        (
            json(r#"{"mounts":[{"hostPath":"/a","containerPath":"/b","options":["rshared"]}]}"#),
            "\"rshared\"",
        ),
    ];
    for (text, expected) in cases {
        let folder = folder(&[("d.json", &text)]);
        let registry = Registry::read(&[folder.path().to_owned()]);
        let error = edited(&registry, &[""], &["v.com/x=d"])
            .expect_err("refused")
            .to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn later_directories_win_and_doubles_are_faults() {
    let text = |value: &str| {
        format!(
            "{{cdiVersion: 0.5.0, kind: v.com/x, devices: [{{name: d, containerEdits: {{env: [D={value}]}}}}]}}"
        )
    };
    let (one, two) = (text("one"), text("two"));
    let folder = folder(&[
        ("a/1.yaml", &one),
        ("b/1.yaml", &two),
        ("c/1.yaml", &one),
        ("c/2.yaml", &two),
    ]);
    let read = |names: &[&str]| {
        let folders: Vec<PathBuf> = names.iter().map(|name| folder.path().join(name)).collect();
        let registry = Registry::read(&folders);
        edited(&registry, &[""], &["v.com/x=d"])
            .map(|spec| spec.env.join(" "))
            .map_err(|error| error.to_string())
    };
    assert_eq!(read(&["a", "b"]).as_deref(), Ok("PATH=/bin D=two"));
    assert_eq!(read(&["b", "a"]).as_deref(), Ok("PATH=/bin D=one"));
    let error = read(&["c"]).expect_err("ambiguous");
    assert!(error.contains("two files describe v.com/x=d"), "{error}");
}
