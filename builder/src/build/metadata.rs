//! What the Dockerfile frontend says of its result, as the gateway's protocol has it: bytes by key, the platform behind a
//! slash where there are several.
use frontend::Answer;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The image config.
pub(crate) const CONFIG: &str = "containerimage.config";
/// That of the base image.
pub(crate) const BASE_CONFIG: &str = "containerimage.base.config";
/// Which platforms there are.
pub(crate) const PLATFORMS: &str = "refs.platforms";
/// `SOURCE_DATE_EPOCH`.
pub(crate) const EPOCH: &str = "source.date.epoch";

/// The metadata of an answer.
pub(crate) fn metadata(answer: &Answer) -> BTreeMap<String, Vec<u8>> {
    let platforms = answer
        .platforms
        .iter()
        .map(|platform| json!({"ID": platform.id, "Platform": platform.platform}));
    let platforms: Vec<Value> = platforms.collect();
    let text = json!({ "Platforms": platforms }).to_string().into_bytes();
    let mut metadata = BTreeMap::from([(PLATFORMS.to_owned(), text)]);
    for platform in &answer.platforms {
        let mut set = |key: &str, value: Vec<u8>| {
            let key = match answer.is_multi_platform {
                true => format!("{key}/{}", platform.id),
                false => key.to_owned(),
            };
            metadata.insert(key, value);
        };
        set(CONFIG, platform.config.clone());
        if let Some(base) = &platform.base_config {
            set(BASE_CONFIG, base.clone());
        }
        if let Some(epoch) = platform.epoch {
            set(EPOCH, epoch.to_string().into_bytes());
        }
    }
    metadata
}
