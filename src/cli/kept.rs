//! What the ledger keeps of one peer, read beside a running bridge or without one; nothing is
//! written.

use crate::config::Config;
use crate::identity::vault::Vault;
use crate::protocol::PeerName;
use crate::protocols::paracord;
use crate::protocols::voltchat::record::Peer;
use crate::protocols::voltchat::{ID, book};
use crate::store::{Store, TrustRow};

/// The peer, with its secret; `None`: there is no ledger, or it knows no such peer. The error is a
/// sentence about what cannot be read.
pub(super) async fn peer(config: &Config, host: &PeerName) -> Result<Option<Peer>, String> {
    let key = &config.voltchat.key_path;
    // A key file would be made where there is none.
    if !key.exists() {
        return Ok(None);
    }
    let Ok(store) = Store::open_read_only(&config.store).await else {
        return Ok(None);
    };
    let kept = store.record(ID, book::KIND, host.as_str()).await;
    store.close().await;
    let Some(kept) = kept.map_err(|e| e.to_string())? else {
        return Ok(None);
    };
    let vault = Vault::open_file(key).map_err(|e| e.to_string())?;
    Peer::from_kept(host.as_str(), &kept, &vault)
        .map(Some)
        .map_err(|e| e.to_string())
}

/// What the ledger keeps for a look at a Paracord server.
#[derive(Default)]
pub(super) struct Paracord {
    /// The server; `None`: it is not known.
    pub peer: Option<paracord::record::Peer>,
    /// Our own keys with their ids, as the store has them.
    pub own_keys: Vec<(String, String, i64)>,
    pub rules: Vec<TrustRow>,
}

/// The same of a Paracord server; nothing, where there is no ledger.
pub(super) async fn paracord(config: &Config, name: &PeerName) -> Result<Paracord, String> {
    let Ok(store) = Store::open_read_only(&config.store).await else {
        return Ok(Paracord::default());
    };
    let kept = store
        .record(paracord::ID, paracord::book::KIND, name.as_str())
        .await;
    let own_keys = store.server_keys(paracord::ID).await;
    let rules = store.trust_rules().await;
    store.close().await;
    let peer = match kept.map_err(|e| e.to_string())? {
        Some(kept) => {
            let peer = paracord::record::Peer::from_kept(name.as_str(), &kept);
            Some(peer.map_err(|e| e.to_string())?)
        }
        None => None,
    };
    Ok(Paracord {
        peer,
        own_keys: own_keys.map_err(|e| e.to_string())?,
        rules: rules.map_err(|e| e.to_string())?,
    })
}
