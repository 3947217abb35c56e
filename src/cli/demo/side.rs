//! One of the two bridges: its configuration, its life, its queue.

use std::net::TcpListener;
use std::path::Path;

use serde_json::json;

use crate::admin::token;
use crate::app::{self, Running};
use crate::bus::Bus;
use crate::clock::Clock;
use crate::config::Config;
use crate::identity::SigningKey;
use crate::protocols::uam::address::Address;

use super::cache_dir;

/// One bridge.
pub(super) struct Side {
    /// What it is called in the demo.
    pub name: &'static str,
    /// Its name among VoltChat servers.
    pub host: String,
    pub config: Config,
    pub running: Option<Running>,
    /// The agents that live here, with their keys.
    pub agents: Vec<(Address, SigningKey)>,
}

/// Both, each knowing the other's address.
pub(super) fn sides(home: &Path) -> Result<(Side, Side), String> {
    let ports = free_ports(4)?;
    let side = |name: &'static str,
                other: &str,
                mine: usize,
                theirs: usize,
                agents: &[&str]|
     -> Result<Side, String> {
        let dir = home.join(name);
        let text = format!(
            r#"
            data_dir = {dir}
            [nats.managed]
            cache_dir = {cache}
            [public]
            address = "127.0.0.1:{public}"
            drain_timeout = "2s"
            [admin]
            address = "127.0.0.1:{admin}"
            [outbound]
            breaker_initial = "500ms"
            breaker_max = "1s"
            [uam]
            domain = "{name}.test"
            http_url = "http://127.0.0.1:{public}"
            retry_delays = ["1s", "2s", "3s", "4s", "20s"]
            [voltchat]
            url = "http://127.0.0.1:{public}"
            server_name = "{name}"
            allowed_servers = ["127.0.0.1:{peer}"]
            retry_delays = ["1s", "2s", "3s", "4s", "20s"]
            sync_interval = "1s"
            [paracord]
            server_name = "{name}.test"
            url = "http://127.0.0.1:{public}"
            retry_delays = ["1s", "2s", "3s", "4s", "20s"]
            poll_interval = "1s"
            [[peers]]
            protocol = "uam"
            name = "{other}.test"
            endpoint = "http://127.0.0.1:{peer}"
            "#,
            dir = json!(dir),
            cache = json!(cache_dir()),
            public = ports[mine],
            admin = ports[mine + 1],
            peer = ports[theirs],
        );
        let agents = agents.iter().map(|agent| {
            let address =
                Address::parse(&format!("{agent}::{name}.test")).map_err(|e| e.to_string())?;
            Ok((address, SigningKey::generate().map_err(|e| e.to_string())?))
        });
        let config = Config::from_text(&text).map_err(|e| e.to_string())?;
        Ok(Side {
            name,
            host: format!("127.0.0.1:{}", ports[mine]),
            config,
            running: None,
            agents: agents.collect::<Result<_, String>>()?,
        })
    };
    Ok((
        side("alpha", "beta", 0, 2, &["alice", "carol"])?,
        side("beta", "alpha", 2, 0, &["bob"])?,
    ))
}

impl Side {
    /// Its name among Paracord servers.
    pub fn server(&self) -> String {
        format!("{}.test", self.name)
    }

    pub async fn start(&mut self) -> Result<(), String> {
        let running = app::start(self.config.clone())
            .await
            .map_err(|e| e.to_string())?;
        println!("   {} listens on {}", self.name, running.public);
        self.running = Some(running);
        Ok(())
    }

    pub async fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop().await;
        }
    }

    pub async fn bus(&self) -> Result<Bus, String> {
        let url = self.running.as_ref().map(|r| r.nats_url.clone());
        let nats = match url {
            Some(url) => self.config.nats.with_managed(url),
            None => self.config.nats.clone(),
        };
        Bus::connect(&nats).await.map_err(|e| e.to_string())
    }

    pub async fn show_queue(&self) -> Result<(), String> {
        let Some(running) = &self.running else {
            return Ok(());
        };
        println!("   The queue of {}:", self.name);
        let now = Clock::system().now_ms();
        for row in running.pending().await.map_err(|e| e.to_string())? {
            let next = match row.next_at_ms {
                Some(at) if at > now => format!("next attempt in {} ms", at - now),
                _ => "as soon as the peer answers".into(),
            };
            let why = row
                .reason_code
                .unwrap_or_else(|| "behind an earlier one".into());
            println!(
                "   #{} {} to {} attempts {} ({why}), {next}",
                row.id, row.protocol, row.peer, row.attempts
            );
        }
        Ok(())
    }

    /// Where a person may look on.
    pub fn look_at(&self) {
        let Some(running) = &self.running else { return };
        println!(
            "\n{2}: admin http://{0}/readyz http://{0}/metrics; http://{0}/api/v1/queue with the \
             token in {1}",
            running.admin,
            token::path(&self.config).display(),
            self.name
        );
        println!(
            "  peers reach it at http://{0}/.well-known/uam-relay.json, \
             http://{0}/api/federation/info and http://{0}/.well-known/paracord/server",
            running.public
        );
        println!("  nats --server {} sub 'fed.>'", running.nats_url);
    }
}

/// Ports that were free a moment ago; both bridges must know each other's before either starts.
fn free_ports(n: usize) -> Result<Vec<u16>, String> {
    let listeners: Result<Vec<_>, _> = (0..n).map(|_| TcpListener::bind("127.0.0.1:0")).collect();
    let ports = listeners.and_then(|l| l.iter().map(|l| Ok(l.local_addr()?.port())).collect());
    ports.map_err(|e: std::io::Error| format!("no free port on loopback: {e}"))
}
