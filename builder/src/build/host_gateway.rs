//! Puts an address in the place of `host-gateway` among the attributes of a build (`--add-host name=host-gateway`).
//!
//! The frontend knows addresses only, and which one it is depends on the machine the steps run on: that is ours.
//! With the machine's own network forced on all steps it is loopback. A step that alone asks for another network
//! (`RUN --network=host`) keeps the address: this machine reaches itself by it, too.
use super::BuildError;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use worker::Worker;

const HOSTS: &str = "add-hosts";
const WORD: &str = "host-gateway";

/// Replaces the word by this machine's address wherever a name is to have it.
///
/// # Errors
/// This machine has no address that steps would reach.
pub(crate) async fn resolve(
    attributes: &mut BTreeMap<String, String>,
    worker: &Worker,
) -> Result<(), BuildError> {
    let Some(hosts) = attributes.get(HOSTS).filter(|hosts| hosts.contains(WORD)) else {
        return Ok(());
    };
    let is_host = attributes
        .get("force-network-mode")
        .is_some_and(|mode| mode == "host");
    let address = match is_host {
        true => Ipv4Addr::LOCALHOST.into(),
        false => worker.host_address().await.map_err(|error| BuildError::Machine {
            doing: "find the address that host-gateway stands for".to_owned(),
            reason: error.to_string(),
        })?,
    };
    let replaced = replaced(hosts, address);
    attributes.insert(HOSTS.to_owned(), replaced);
    Ok(())
}

fn replaced(hosts: &str, address: IpAddr) -> String {
    let one = |field: &str| match field.split_once('=') {
        Some((name, word)) if word.eq_ignore_ascii_case(WORD) => format!("{name}={address}"),
        _ => field.to_owned(),
    };
    hosts.split(',').map(one).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_word_itself_is_replaced() {
        let hosts = "a=10.0.0.1,gw=host-gateway,host-gateway=10.0.0.2,b=HOST-gateway";
        assert_eq!(
            replaced(hosts, Ipv4Addr::new(10, 89, 0, 1).into()),
            "a=10.0.0.1,gw=10.89.0.1,host-gateway=10.0.0.2,b=10.89.0.1"
        );
    }
}
