//! Wire types of the services a daemon offers, and nothing else.
//!
//! ```text
//! proto/*.proto ─▶ generated/ ─▶ control, gateway, policy, errdefs …
//! ```
//!
//! Ops are llb's, files and blobs are session's. No logic: whoever speaks the wire turns these types into its own at the
//! door, by a conversion that can fail. To change a message, change its proto file and see the head of it.
#![expect(
    missing_docs,
    clippy::allow_attributes,
    clippy::too_many_lines,
    clippy::large_enum_variant,
    reason = "generated code"
)]

pub mod moby {
    pub mod buildkit {
        pub mod v1 {
            include!("generated/moby.buildkit.v1.rs");
            pub mod types {
                include!("generated/moby.buildkit.v1.types.rs");
            }
            pub mod frontend {
                include!("generated/moby.buildkit.v1.frontend.rs");
            }
            pub mod apicaps {
                include!("generated/moby.buildkit.v1.apicaps.rs");
            }
            pub mod sourcepolicy {
                include!("generated/moby.buildkit.v1.sourcepolicy.rs");
                pub mod policysession {
                    include!("generated/moby.buildkit.v1.sourcepolicy.policysession.rs");
                }
            }
        }
    }
}
pub mod errdefs {
    include!("generated/errdefs.rs");
}
pub mod stack {
    include!("generated/stack.rs");
}
pub mod google {
    pub mod rpc {
        include!("generated/google.rpc.rs");
    }
}
pub mod opentelemetry {
    pub mod proto {
        pub mod collector {
            pub mod trace {
                pub mod v1 {
                    include!("generated/opentelemetry.proto.collector.trace.v1.rs");
                }
            }
        }
    }
}

pub use google::rpc;
pub use moby::buildkit::v1 as control;
pub use moby::buildkit::v1::{apicaps, frontend as gateway, sourcepolicy, types};
pub use opentelemetry::proto::collector::trace::v1 as trace;
pub use session::wire::content;
