//! Ops as BuildKit prints them: the names of the wire, what is empty left out, numbers for choices.
//!
//! ```text
//! op ─┬─▶ json: as in provenance, each choice under the name of its field in Go
//!     └─▶ protojson: as protobuf says it, for errors that clients decode
//! ```

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use llb::proto::{self, file_action::Action, op::Op, user_opt::User};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// A message as JSON.
pub(super) trait Json {
    fn json(&self) -> Value;
}

/// A field as JSON; `None` where it is empty.
trait Field {
    fn field(&self) -> Option<Value>;
}

macro_rules! plain {
    ($($kind:ty),*) => {$(
        impl Field for $kind {
            fn field(&self) -> Option<Value> {
                (*self != <$kind>::default()).then(|| json!(self))
            }
        }
    )*};
}
plain!(
    String,
    bool,
    i32,
    i64,
    u32,
    Vec<String>,
    Vec<i32>,
    Vec<i64>,
    BTreeMap<String, String>
);

impl Field for Vec<u8> {
    fn field(&self) -> Option<Value> {
        (!self.is_empty()).then(|| Value::from(STANDARD.encode(self)))
    }
}

impl<T: Json> Field for Option<T> {
    fn field(&self) -> Option<Value> {
        self.as_ref().map(Json::json)
    }
}

impl<T: Json> Field for Vec<T> {
    fn field(&self) -> Option<Value> {
        (!self.is_empty()).then(|| self.iter().map(Json::json).collect())
    }
}

impl<T: Json> Field for BTreeMap<String, T> {
    fn field(&self) -> Option<Value> {
        let entries = self.iter().map(|(key, value)| (key.clone(), value.json()));
        (!self.is_empty()).then(|| Value::Object(entries.collect()))
    }
}

macro_rules! message {
    ($kind:ident { $($field:ident: $name:literal),* $(,)? }) => {
        impl Json for proto::$kind {
            fn json(&self) -> Value {
                let mut out = Map::new();
                $(
                    if let Some(value) = self.$field.field() {
                        out.insert($name.to_owned(), value);
                    }
                )*
                Value::Object(out)
            }
        }
    };
}

message!(Input {
    digest: "digest",
    index: "index"
});
message!(Platform {
    architecture: "Architecture",
    os: "OS",
    variant: "Variant",
    os_version: "OSVersion",
    os_features: "OSFeatures",
});
message!(WorkerConstraints { filter: "filter" });
message!(SourceOp {
    identifier: "identifier",
    attrs: "attrs"
});
message!(ExecOp {
    meta: "meta",
    mounts: "mounts",
    network: "network",
    security: "security",
    secretenv: "secretenv",
    cdi_devices: "cdiDevices",
});
message!(Meta {
    args: "args",
    env: "env",
    cwd: "cwd",
    user: "user",
    proxy_env: "proxy_env",
    extra_hosts: "extraHosts",
    hostname: "hostname",
    ulimit: "ulimit",
    cgroup_parent: "cgroupParent",
    remove_mount_stubs_recursive: "removeMountStubsRecursive",
    valid_exit_codes: "validExitCodes",
});
message!(ProxyEnv {
    http_proxy: "http_proxy",
    https_proxy: "https_proxy",
    ftp_proxy: "ftp_proxy",
    no_proxy: "no_proxy",
    all_proxy: "all_proxy",
});
message!(HostIp {
    host: "Host",
    ip: "IP"
});
message!(Ulimit {
    name: "Name",
    soft: "Soft",
    hard: "Hard"
});
message!(SecretEnv {
    id: "ID",
    name: "name",
    optional: "optional"
});
message!(CdiDevice {
    name: "name",
    optional: "optional"
});
message!(Mount {
    input: "input",
    selector: "selector",
    dest: "dest",
    output: "output",
    readonly: "readonly",
    mount_type: "mountType",
    tmpfs_opt: "TmpfsOpt",
    cache_opt: "cacheOpt",
    secret_opt: "secretOpt",
    ssh_opt: "SSHOpt",
    result_id: "resultID",
    content_cache: "contentCache",
});
message!(TmpfsOpt { size: "size" });
message!(CacheOpt {
    id: "ID",
    sharing: "sharing"
});
message!(SecretOpt {
    id: "ID",
    uid: "uid",
    gid: "gid",
    mode: "mode",
    optional: "optional"
});
message!(SshOpt {
    id: "ID",
    uid: "uid",
    gid: "gid",
    mode: "mode",
    optional: "optional"
});
message!(FileOp { actions: "actions" });
message!(FileActionCopy {
    src: "src",
    dest: "dest",
    owner: "owner",
    mode: "mode",
    follow_symlink: "followSymlink",
    dir_copy_contents: "dirCopyContents",
    attempt_unpack_docker_compatibility: "attemptUnpackDockerCompatibility",
    create_dest_path: "createDestPath",
    allow_wildcard: "allowWildcard",
    allow_empty_wildcard: "allowEmptyWildcard",
    timestamp: "timestamp",
    include_patterns: "include_patterns",
    exclude_patterns: "exclude_patterns",
    always_replace_existing_dest_paths: "alwaysReplaceExistingDestPaths",
    mode_str: "modeStr",
    required_paths: "required_paths",
});
message!(FileActionMkFile {
    path: "path",
    mode: "mode",
    data: "data",
    owner: "owner",
    timestamp: "timestamp",
});
message!(FileActionMkDir {
    path: "path",
    mode: "mode",
    make_parents: "makeParents",
    owner: "owner",
    timestamp: "timestamp",
});
message!(FileActionRm {
    path: "path",
    allow_not_found: "allowNotFound",
    allow_wildcard: "allowWildcard",
});
message!(FileActionSymlink {
    oldpath: "oldpath",
    newpath: "newpath",
    owner: "owner",
    timestamp: "timestamp",
});
message!(ChownOpt {
    user: "user",
    group: "group"
});
message!(NamedUserOpt {
    name: "name",
    input: "input"
});
message!(MergeOp { inputs: "inputs" });
message!(MergeInput { input: "input" });
message!(DiffOp {
    lower: "lower",
    upper: "upper"
});
message!(LowerDiffInput { input: "input" });
message!(UpperDiffInput { input: "input" });
message!(PassthroughOp {
    id: "id",
    outputs: "outputs"
});
message!(BuildInput { input: "input" });
message!(Location {
    source_index: "sourceIndex",
    ranges: "ranges"
});
message!(Range {
    start: "start",
    end: "end"
});
message!(Position {
    line: "line",
    character: "character"
});
message!(Locations {
    locations: "locations"
});

/// Differs: of a definition inside an op only its ops are printed, not what is said of them.
impl Json for proto::BuildOp {
    fn json(&self) -> Value {
        let mut out = Map::new();
        let ops = self.def.as_ref().map(|definition| {
            let ops: Vec<_> = definition.def.iter().map(|op| STANDARD.encode(op)).collect();
            json!({ "def": ops })
        });
        let fields = [
            ("builder", self.builder.field()),
            ("inputs", self.inputs.field()),
            ("def", ops),
            ("attrs", self.attrs.field()),
        ];
        out.extend(
            fields
                .into_iter()
                .filter_map(|(key, value)| Some((key.to_owned(), value?))),
        );
        Value::Object(out)
    }
}

impl Json for proto::Op {
    fn json(&self) -> Value {
        let mut op = Map::new();
        let named = self.op.as_ref().map(|op| match op {
            Op::Exec(op) => ("exec", op.json()),
            Op::Source(op) => ("source", op.json()),
            Op::File(op) => ("file", op.json()),
            Op::Build(op) => ("build", op.json()),
            Op::Merge(op) => ("merge", op.json()),
            Op::Diff(op) => ("diff", op.json()),
            Op::Passthrough(op) => ("passthrough", op.json()),
        });
        op.extend(named.map(|(name, value)| (name.to_owned(), value)));
        let mut out = Map::new();
        out.extend(self.inputs.field().map(|inputs| ("inputs".to_owned(), inputs)));
        out.insert("Op".to_owned(), Value::Object(op));
        out.extend(self.platform.field().map(|value| ("platform".to_owned(), value)));
        out.extend(
            self.constraints
                .field()
                .map(|value| ("constraints".to_owned(), value)),
        );
        Value::Object(out)
    }
}

impl Json for proto::FileAction {
    fn json(&self) -> Value {
        let mut action = Map::new();
        let named = match &self.action {
            Some(Action::Copy(copy)) => Some(("copy", copy.json())),
            Some(Action::Mkfile(file)) => Some(("mkfile", file.json())),
            Some(Action::Mkdir(folder)) => Some(("mkdir", folder.json())),
            Some(Action::Rm(removal)) => Some(("rm", removal.json())),
            // BuildKit has no name for this one.
            Some(Action::Symlink(_)) | None => None,
        };
        action.extend(named.map(|(name, value)| (name.to_owned(), value)));
        json!({
            "input": self.input,
            "secondaryInput": self.secondary_input,
            "output": self.output,
            "Action": action,
        })
    }
}

impl Json for proto::UserOpt {
    fn json(&self) -> Value {
        let user = match &self.user {
            Some(User::ByName(name)) => json!({"byName": name.json()}),
            Some(User::ById(id)) if *id != 0 => json!({"byId": id}),
            Some(User::ById(_)) | None => json!({}),
        };
        json!({ "User": user })
    }
}

/// An op as protobuf's own JSON: which kind it is stands beside its other fields.
pub(crate) fn protojson(op: &proto::Op) -> Value {
    let mut out = op.json();
    lift(&mut out, "Op");
    if let Some(Op::File(file)) = &op.op {
        out["file"]["actions"] = file.actions.iter().map(action).collect();
    }
    out
}

fn action(action: &proto::FileAction) -> Value {
    let mut out = action.json();
    lift(&mut out, "Action");
    let (name, owner) = match &action.action {
        Some(Action::Copy(copy)) => ("copy", &copy.owner),
        Some(Action::Mkfile(file)) => ("mkfile", &file.owner),
        Some(Action::Mkdir(folder)) => ("mkdir", &folder.owner),
        Some(Action::Symlink(link)) => {
            out["symlink"] = link.json();
            ("symlink", &link.owner)
        }
        Some(Action::Rm(_)) | None => return out,
    };
    if let Some(owner) = owner {
        let one = |user: &Option<proto::UserOpt>| match user.as_ref().map(|user| &user.user) {
            Some(Some(User::ByName(name))) => Some(json!({ "byName": name.json() })),
            Some(Some(User::ById(id))) => Some(json!({ "byID": id })),
            Some(None) => Some(json!({})),
            None => None,
        };
        let sides = [("user", one(&owner.user)), ("group", one(&owner.group))];
        let sides = sides
            .into_iter()
            .filter_map(|(key, side)| Some((key.to_owned(), side?)));
        out[name]["owner"] = Value::Object(sides.collect());
    }
    out
}

/// Puts what is in the object `name` into the object around it.
fn lift(value: &mut Value, name: &str) {
    let Some(fields) = value.as_object_mut() else {
        return;
    };
    if let Some(Value::Object(inner)) = fields.remove(name) {
        fields.extend(inner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protobufs_json_has_no_names_of_go() {
        let owner = proto::ChownOpt {
            user: Some(proto::UserOpt {
                user: Some(User::ById(0)),
            }),
            group: Some(proto::UserOpt {
                user: Some(User::ByName(proto::NamedUserOpt {
                    name: "app".into(),
                    input: 1,
                })),
            }),
        };
        let link = proto::FileActionSymlink {
            oldpath: "/a".into(),
            newpath: "/b".into(),
            owner: Some(owner),
            timestamp: -1,
        };
        let op = proto::Op {
            op: Some(Op::File(proto::FileOp {
                actions: vec![proto::FileAction {
                    action: Some(Action::Symlink(link)),
                    ..<_>::default()
                }],
            })),
            ..<_>::default()
        };
        let expected = json!({"file": {"actions": [{
            "input": 0, "secondaryInput": 0, "output": 0,
            "symlink": {
                "oldpath": "/a", "newpath": "/b", "timestamp": -1,
                "owner": {"user": {"byID": 0}, "group": {"byName": {"name": "app", "input": 1}}},
            },
        }]}});
        assert_eq!(protojson(&op), expected);
    }
}
