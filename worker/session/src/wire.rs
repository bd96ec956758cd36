//! The wire types of the services at a client's end of a session; `proto/` is their source, `generated/` made of it.
#![expect(
    missing_docs,
    unreachable_pub,
    clippy::allow_attributes,
    clippy::too_many_lines,
    reason = "generated code"
)]

/// Generated code finds its neighbours by the packages' paths.
mod packages {
    pub mod fsutil {
        pub mod types {
            include!("generated/fsutil.types.rs");
        }
    }
    pub mod moby {
        pub mod filesync {
            pub mod v1 {
                include!("generated/moby.filesync.v1.rs");
            }
        }
        pub mod buildkit {
            pub mod secrets {
                pub mod v1 {
                    include!("generated/moby.buildkit.secrets.v1.rs");
                }
            }
        }
        pub mod sshforward {
            pub mod v1 {
                include!("generated/moby.sshforward.v1.rs");
            }
        }
        pub mod upload {
            pub mod v1 {
                include!("generated/moby.upload.v1.rs");
            }
        }
        pub mod exporter {
            pub mod v1 {
                include!("generated/moby.exporter.v1.rs");
            }
        }
    }
    pub mod containerd {
        pub mod services {
            pub mod content {
                pub mod v1 {
                    include!("generated/containerd.services.content.v1.rs");
                }
            }
        }
    }
}

pub use packages::containerd::services::content::v1 as content;
pub use packages::fsutil::types as fsutil;
pub use packages::moby::buildkit::secrets::v1 as secrets;
pub use packages::moby::exporter::v1 as exporter;
pub use packages::moby::filesync::v1 as filesync;
pub use packages::moby::sshforward::v1 as ssh;
pub use packages::moby::upload::v1 as upload;
