//! Three nats-servers that are one cluster on loopback: each can be killed, frozen and brought back
//! on its own ports and files.
#![allow(
    dead_code,
    reason = "shared by several test binaries, each uses its part"
)]

use std::path::Path;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use futures_util::future::join_all;

use super::bridge::free_port;
use super::custom_broker::CustomBroker;

/// Servers of the cluster: the fewest that can lose one.
const NODES: usize = 3;

/// How long the cluster may take to find itself on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The servers, numbered from 0; their names are `n0`, `n1`, `n2`.
pub struct Cluster {
    nodes: Vec<CustomBroker>,
    routes: Vec<u16>,
}

impl Cluster {
    /// Ports and folders; nothing runs yet.
    pub fn new(dir: &Path) -> Self {
        let nodes = (0..NODES)
            .map(|n| CustomBroker::new(&dir.join(format!("n{n}"))))
            .collect();
        let routes = (0..NODES).map(|_| free_port()).collect();
        Self { nodes, routes }
    }

    /// Starts all and waits until they agree on who leads.
    pub async fn start(&mut self) {
        for node in 0..NODES {
            self.bring(node).await;
        }
        self.ready().await;
    }

    /// Starts one server, which looks for the others by itself.
    pub async fn bring(&mut self, node: usize) {
        let configuration = self.configuration(node);
        self.nodes[node].start(&configuration).await;
    }

    /// The configuration of one server, with the flushing that nats-server has by default.
    fn configuration(&self, node: usize) -> String {
        let others: Vec<_> = self
            .routes
            .iter()
            .map(|port| format!("\"nats://127.0.0.1:{port}\""))
            .collect();
        format!(
            "server_name: n{node}\nmax_payload: 16MB\n{}\n\
             cluster {{ name: fed, listen: \"127.0.0.1:{}\", routes: [{}] }}",
            self.nodes[node].jetstream("max_memory_store: 256MB, max_file_store: 4GB"),
            self.routes[node],
            others.join(", ")
        )
    }

    /// Waits until JetStream answers for the whole cluster.
    pub async fn ready(&self) {
        let js = jetstream::new(super::bridge::connect(&self.urls()).await);
        let end = Instant::now() + PATIENCE;
        while js.query_account().await.is_err() {
            assert!(Instant::now() < end, "no leader:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// SIGKILL to one server, at once.
    pub fn kill9(&mut self, node: usize) {
        self.nodes[node].stop();
    }

    /// One server stands still (SIGSTOP) with its connections open.
    pub fn freeze(&self, node: usize) {
        self.nodes[node].signal("STOP");
    }

    /// It goes on (SIGCONT) and does not know that time has passed.
    pub fn thaw(&self, node: usize) {
        self.nodes[node].signal("CONT");
    }

    /// The addresses of all servers, with commas between.
    pub fn urls(&self) -> String {
        let all: Vec<_> = self.nodes.iter().map(CustomBroker::url).collect();
        all.join(",")
    }

    /// The address of one server.
    pub fn url(&self, node: usize) -> String {
        self.nodes[node].url()
    }

    /// The server of a name such as `n1`.
    pub fn node(name: &str) -> usize {
        let number = name.strip_prefix('n').and_then(|n| n.parse().ok());
        number.expect("a server of this cluster")
    }

    /// Who leads a stream; waits while nobody does.
    pub async fn leader(&self, js: &jetstream::Context, stream: &str) -> usize {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Ok(found) = js.get_stream(stream).await
                && let Some(leader) = found
                    .cached_info()
                    .cluster
                    .as_ref()
                    .and_then(|c| c.leader.clone())
            {
                return Self::node(&leader);
            }
            assert!(Instant::now() < end, "{stream} has no leader");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until every server that keeps one of these streams is there and has all of it.
    pub async fn whole(&self, js: &jetstream::Context, streams: &[&str]) {
        let end = Instant::now() + PATIENCE;
        loop {
            let looks = join_all(streams.iter().map(|stream| current(js, stream))).await;
            if looks.into_iter().all(|whole| whole) {
                return;
            }
            assert!(
                Instant::now() < end,
                "the cluster does not heal:\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What the servers said since their last starts, the end of it.
    pub fn log(&self) -> String {
        let all = self
            .nodes
            .iter()
            .map(|node| super::bridge::tail(&node.log()));
        all.collect::<Vec<_>>().join("\n\n")
    }
}

/// Whether all three servers of a stream hold all of it.
async fn current(js: &jetstream::Context, stream: &str) -> bool {
    let Ok(found) = js.get_stream(stream).await else {
        return false;
    };
    found.cached_info().cluster.as_ref().is_some_and(|cluster| {
        cluster.leader.is_some()
            && cluster.replicas.len() == NODES - 1
            && cluster.replicas.iter().all(|r| r.current && !r.offline)
    })
}
