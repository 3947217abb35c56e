//! SIGHUP: what can be changed while the bridge runs.
//!
//! | taken up at once | how |
//! | --- | --- |
//! | trust rules | read from the store again |
//! | `[[peers]]` | [`Peers::repin`]; what they allow to be dialled goes with them |
//! | certificates | new handshakes get the new one, connections stay |
//! | a protocol's own files | [`Protocol::reload`] |
//! | `log.level` | the filter is replaced |
//! | who may be dialled, roots, DNS (`[http]`) | new connections follow it |
//!
//! All or nothing: the new configuration, its certificates and its roots are read and judged first;
//! a fault in any keeps everything as it was and is said in the log and on `fed.ops`. A changed
//! setting that is not in the table is named in a line of its own: it waits for a restart.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::json;

use crate::config::{Config, ListenConfig};
use crate::http::client::Client;
use crate::http::tls::{self, Certificate};
use crate::ops::{Ops, log, metrics};
use crate::peers::{Peers, Repinned};
use crate::protocol::{Protocol, ProtocolId};
use crate::trust::Trust;

/// Settings that are taken up while running, besides `peers`.
const LIVE: [&str; 12] = [
    "admin.tls_certificate",
    "admin.tls_key",
    "http.allow_cidrs",
    "http.allow_hosts",
    "http.connect_timeout",
    "http.dns_servers",
    "http.extra_roots",
    "http.plain_hosts",
    "http.srv",
    "log.level",
    "public.tls_certificate",
    "public.tls_key",
];

/// What the process is in `fed.ops` events that are about no peer.
const BRIDGE: &str = "bridge";
const SELF: &str = "self";

/// The parts that can take up new settings, and what they follow now.
pub(super) struct Reloadable {
    /// What the parts that cannot change were started with.
    pub started: Config,
    /// What is in force where it can change.
    pub current: Config,
    /// Of the public listener's threads.
    pub public: Vec<Certificate>,
    pub admin: Option<Certificate>,
    /// Every outgoing client.
    pub clients: Vec<Client>,
    pub peers: Peers,
    pub trust: Trust,
    pub protocols: Arc<HashMap<ProtocolId, Arc<dyn Protocol>>>,
    pub ops: Ops,
}

/// What a reload did.
#[derive(Debug, Default)]
pub struct Reloaded {
    /// Settings that changed and are in force.
    pub changed: Vec<String>,
    /// Settings that differ from what the bridge was started with and wait for a restart.
    pub restart: Vec<String>,
    pub peers: Repinned,
    /// Trust rules in force; `None`: the store did not answer, those known stay.
    pub trust_rules: Option<usize>,
}

/// Everything that could go wrong has gone well.
struct Judged {
    public: Option<tls::Prepared>,
    admin: Option<tls::Prepared>,
    clients: Vec<crate::http::client::Prepared>,
}

impl Reloadable {
    /// Takes up `fresh`, or keeps what is in force. Both are said in the log and on `fed.ops`.
    pub async fn reload(&mut self, fresh: Result<Config, String>) -> Result<Reloaded, String> {
        let judged = fresh.and_then(|config| {
            let judged = self.judge(&config)?;
            Ok((config, judged))
        });
        metrics::config_reload(judged.is_ok());
        match judged {
            Ok((config, judged)) => Ok(self.take(config, judged).await),
            Err(why) => {
                tracing::error!(
                    reason = %why,
                    "the new configuration is wrong; the old one stays in force"
                );
                let body = json!({"code": "config_rejected", "detail": why});
                self.ops.event("config", "rejected", BRIDGE, SELF, body);
                Err(why)
            }
        }
    }

    fn judge(&self, fresh: &Config) -> Result<Judged, String> {
        log::check_level(&fresh.log.level).map_err(|e| e.to_string())?;
        let public = prepared(&fresh.public, !self.public.is_empty())?;
        let admin = prepared(&fresh.admin, self.admin.is_some())?;
        let dial_anew = fresh.http != self.current.http || !fresh.http.extra_roots.is_empty();
        let clients = match dial_anew {
            true => self
                .clients
                .iter()
                .map(|_| Client::prepare(&fresh.http))
                .collect::<Result<_, _>>()?,
            false => Vec::new(),
        };
        Ok(Judged {
            public,
            admin,
            clients,
        })
    }

    async fn take(&mut self, fresh: Config, judged: Judged) -> Reloaded {
        if let Some(prepared) = &judged.public {
            self.public.iter().for_each(|c| c.adopt(prepared));
        }
        if let (Some(prepared), Some(certificate)) = (&judged.admin, &self.admin) {
            certificate.adopt(prepared);
        }
        for (client, prepared) in self.clients.iter().zip(judged.clients) {
            client.adopt(prepared);
        }
        let peers = self.peers.repin(&fresh.peers);
        if let Err(error) = log::set_level(&fresh.log.level) {
            tracing::warn!(%error, "the log level stays as it was");
        }
        for (id, protocol) in self.protocols.iter() {
            if let Err(refusal) = protocol.reload() {
                tracing::warn!(
                    protocol = id, code = refusal.code, reason = %refusal.detail,
                    "the protocol's files could not be read again; what was known stays"
                );
            }
        }
        let trust_rules = match self.trust.reload().await {
            Ok(count) => Some(count),
            Err(error) => {
                tracing::warn!(%error, "the trust rules could not be read again; those known stay in force");
                None
            }
        };
        let tls_switched = |path: &str| {
            let on = |config: &Config| match path.split_once('.') {
                Some(("admin", _)) => config.admin.tls_certificate.is_some(),
                _ => config.public.tls_certificate.is_some(),
            };
            path.contains(".tls_") && on(&self.started) != on(&fresh)
        };
        let live = |path: &str| is_live(path) && !tls_switched(path);
        let mut changed = self.current.given.changed(&fresh.given);
        changed.retain(|path| live(path));
        let mut restart = self.started.given.changed(&fresh.given);
        restart.retain(|path| !live(path));
        self.current = fresh;
        let done = Reloaded {
            changed,
            restart,
            peers,
            trust_rules,
        };
        self.say(&done);
        done
    }

    fn say(&self, done: &Reloaded) {
        tracing::info!(
            changed = done.changed.join(" "),
            peers_added = done.peers.added.join(" "),
            peers_changed = done.peers.changed.join(" "),
            peers_removed = done.peers.removed.join(" "),
            trust_rules = done.trust_rules,
            "the configuration was read again"
        );
        for path in &done.restart {
            tracing::warn!(setting = %path, "{path} changed: restart to put it in force");
        }
        let body = json!({
            "changed": done.changed,
            "restart": done.restart,
            "peers": {
                "added": done.peers.added,
                "changed": done.peers.changed,
                "removed": done.peers.removed,
            },
            "trust_rules": done.trust_rules,
        });
        self.ops.event("config", "reloaded", BRIDGE, SELF, body);
    }
}

fn is_live(path: &str) -> bool {
    path == "peers" || path.starts_with("http.hosts") || LIVE.contains(&path)
}

/// The certificate of a listener, read anew. TLS itself is not switched while running.
fn prepared(listener: &ListenConfig, in_use: bool) -> Result<Option<tls::Prepared>, String> {
    match (&listener.tls_certificate, &listener.tls_key) {
        (Some(certificate), Some(key)) if in_use => Certificate::prepare(certificate, key)
            .map(Some)
            .map_err(|e| e.to_string()),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_live_setting_exists() {
        let defaults: toml::Table = crate::config::DEFAULT_TOML.parse().unwrap();
        for path in LIVE {
            let (section, key) = path.split_once('.').unwrap();
            // The admin listener's TLS comes and goes with its own settings.
            let there = defaults[section].get(key).is_some();
            assert!(there || section == "admin", "{path}");
        }
        assert!(is_live("peers") && is_live("http.hosts.a.test"));
        assert!(!is_live("nats.url") && !is_live("log.json"));
    }
}
