//! Where things come from: a name, then its key, then a ref.
//!
//! | scheme | module | key |
//! |---|---|---|
//! | `local://` | `local` | none that lasts: users match by content |
//! | `docker-image://` | `image` | manifest digest and platform; then the chain of diff ids |
//! | `git://` | `git` | commit, subdir, and what of the repository is kept |
//! | `http://`, `https://` | `http` | name, mode, owner, digest of the contents, Last-Modified |
//! | `docker-image+blob://`, `oci-layout+blob://` | `blob` | digest, name, mode, owner |
//! | `oci-layout://` | `image`, read by `oci_layout` | the same |

pub mod local;
pub(crate) mod local_op;
pub(crate) mod oci_layout;
pub(crate) mod client_store;
pub mod image;
pub mod attestations; // of images
pub mod checksum; // of other kinds than the store's
pub(crate) mod http;
pub(crate) mod blob;
pub(crate) mod git;
pub mod metadata;
