//! `src/generated.rs` is what protox and tonic-prost-build make of `proto/ops.proto`: no protoc, no build script.

use std::path::Path;

#[test]
fn generated_code_matches_the_proto_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let descriptors =
        protox::compile([root.join("proto/ops.proto")], [root.join("proto")]).expect("ops.proto compiles");
    let out = tempfile::tempdir().expect("a temporary directory");
    tonic_prost_build::configure()
        .out_dir(out.path())
        .btree_map(".")
        .compile_fds(descriptors)
        .expect("code generation succeeds");
    let fresh = std::fs::read_to_string(out.path().join("pb.rs")).expect("generated file");
    let checked_in = root.join("src/generated.rs");
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        std::fs::write(&checked_in, &fresh).expect("write src/generated.rs");
    }
    let now = std::fs::read_to_string(&checked_in).expect("src/generated.rs");
    assert!(
        now == fresh,
        "src/generated.rs differs from proto/ops.proto; see the head of that file"
    );
}
