//! What comes out of the frontend: for each platform a definition and an image config.

use llb::Definition;
use oci::Platform;

/// The answer to a build.
#[derive(Clone, Debug)]
pub struct Answer {
    /// One entry per platform, in the order they were asked for.
    pub platforms: Vec<PlatformAnswer>,
    /// Whether the result is to be an index naming its platforms.
    pub is_multi_platform: bool,
}

/// The answer for one platform.
#[derive(Clone, Debug)]
pub struct PlatformAnswer {
    /// `os/arch[/variant]`, normalised: the key of this entry in results.
    pub id: String,
    /// The platform.
    pub platform: Platform,
    /// What is to be solved; empty is scratch.
    pub definition: Definition,
    /// The image config, as JSON, without diff ids and times (`containerimage.config`).
    pub config: Vec<u8>,
    /// The config of the base image, as JSON (`containerimage.base.config`).
    pub base_config: Option<Vec<u8>>,
    /// `SOURCE_DATE_EPOCH`, seconds since 1970, when the Dockerfile or a build argument sets it.
    pub epoch: Option<i64>,
    /// What a scan of it is to look at beside it, by name: the build context, stages.
    pub scans: Vec<(String, Definition)>,
}
