//! Certificates for the hosts a step speaks to, signed by an authority that lives as long as this process.
//!
//! ```text
//! host ─▶ kept? ─▶ configuration of TLS        no ─▶ key, certificate (24 h) ─▶ kept, the oldest forgotten
//! ```

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};

/// What it calls itself.
const NAME: &str = "BuildKit exec proxy";
const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const HOST_LIFE: Duration = Duration::from_secs(24 * 3600);
/// A certificate is made anew when it has less than this before it.
const HOST_REST: Duration = Duration::from_secs(3600);
/// Clocks differ.
const BEFORE: Duration = Duration::from_secs(3600);
/// Hosts whose certificates are kept.
const KEPT: usize = 1024;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum AuthorityError {
    /// As for the making of keys and certificates.
    #[error("make a certificate for the proxy of steps")]
    Certificate(#[from] rcgen::Error),
    /// As for TLS.
    #[error("set up TLS for the proxy of steps")]
    Tls(#[from] rustls::Error),
}

/// Signs for hosts.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    hosts: Mutex<HashMap<String, Kept>>,
}

struct Kept {
    config: Arc<ServerConfig>,
    made: Instant,
    used: Instant,
}

impl Authority {
    /// A new key, and its own certificate.
    pub(super) fn new() -> Result<Authority, AuthorityError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named(NAME);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let now = SystemTime::now();
        params.not_before = (now - BEFORE).into();
        params.not_after = (now + AUTHORITY_LIFE).into();
        let certificate = params.self_signed(&key)?.pem();
        Ok(Authority {
            issuer: Issuer::new(params, key),
            certificate,
            hosts: Mutex::default(),
        })
    }

    /// What is to be believed, as PEM.
    pub(super) fn certificate(&self) -> &str {
        &self.certificate
    }

    /// How to play `host`, a name or an address. A key is made the first time: about a tenth of a millisecond.
    pub(super) fn host(&self, host: &str) -> Result<Arc<ServerConfig>, AuthorityError> {
        let now = Instant::now();
        let mut hosts = self.hosts.lock();
        if let Some(kept) = hosts.get_mut(host)
            && now.duration_since(kept.made) < HOST_LIFE - HOST_REST
        {
            kept.used = now;
            return Ok(kept.config.clone());
        }
        let config = Arc::new(self.sign(host)?);
        if hosts.len() >= KEPT
            && let Some(oldest) = hosts.iter().min_by_key(|(_, kept)| kept.used)
        {
            let oldest = oldest.0.clone();
            hosts.remove(&oldest);
        }
        let kept = Kept {
            config: config.clone(),
            made: now,
            used: now,
        };
        hosts.insert(host.to_owned(), kept);
        Ok(config)
    }

    fn sign(&self, host: &str) -> Result<ServerConfig, AuthorityError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![host.to_owned()])?;
        // A common name holds 64 characters; what counts are the alternative names.
        params.distinguished_name = named(&host.chars().take(64).collect::<String>());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let now = SystemTime::now();
        params.not_before = (now - BEFORE).into();
        params.not_after = (now + HOST_LIFE).into();
        let certificate = params.signed_by(&key, &self.issuer)?;
        let secret = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()?
                .with_no_client_auth()
                .with_single_cert(vec![certificate.der().clone()], secret)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut whole = DistinguishedName::new();
    whole.push(DnType::CommonName, name);
    whole
}

/// The host of `host:port`, without the brackets of an address.
pub(super) fn host_of(authority: &http::uri::Authority) -> &str {
    let host = authority.host();
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    match bare {
        Some(bare) if bare.parse::<IpAddr>().is_ok() => bare,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_signed_for_once() {
        let authority = Authority::new().expect("an authority");
        assert!(authority.certificate().starts_with("-----BEGIN CERTIFICATE-----"));
        for host in [
            "example.com",
            "10.0.0.1",
            "::1",
            "ALPHA.example",
            &"a.".repeat(100),
        ] {
            let first = authority.host(host).expect("a certificate");
            let second = authority.host(host).expect("the same");
            assert!(Arc::ptr_eq(&first, &second), "{host}");
        }
        assert!(
            authority.host("häuser.example").is_err(),
            "names are ASCII on the wire"
        );
    }

    #[test]
    fn hosts_are_forgotten_before_there_are_too_many() {
        let authority = Authority::new().expect("an authority");
        for number in 0..KEPT + 10 {
            authority
                .host(&format!("h{number}.example"))
                .expect("a certificate");
        }
        assert_eq!(authority.hosts.lock().len(), KEPT);
    }

    #[test]
    fn the_host_of_an_authority_has_no_port_and_no_brackets() {
        for (text, expected) in [
            ("example.com:443", "example.com"),
            ("example.com", "example.com"),
            ("[::1]:443", "::1"),
            ("10.0.0.1:80", "10.0.0.1"),
        ] {
            let authority: http::uri::Authority = text.parse().expect("an authority");
            assert_eq!(host_of(&authority), expected);
        }
    }
}
