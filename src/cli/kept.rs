//! What the ledger keeps of peers, read beside a running bridge or without one; nothing is written.

use crate::clock::Clock;
use crate::config::Config;
use crate::identity::vault::Vault;
use crate::protocol::PeerName;
use crate::protocols::paracord;
use crate::protocols::paracord::explain::Known;
use crate::protocols::voltchat::record::Peer;
use crate::protocols::voltchat::{ID, book};
use crate::store::Store;
use crate::trust::Trust;

/// The VoltChat peer, with its secret; `None`: there is no ledger, or it knows no such peer. The error is a
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

/// The Paracord servers, and what the rules say of them; `None`: there is no ledger. The error is a
/// sentence about what cannot be read.
pub(super) async fn servers(config: &Config) -> Result<Option<Vec<Known>>, String> {
    let Ok(store) = Store::open_read_only(&config.store).await else {
        return Ok(None);
    };
    let known = known(&store).await;
    store.close().await;
    known.map(Some)
}

async fn known(store: &Store) -> Result<Vec<Known>, String> {
    let trust = Trust::open(store.clone(), Clock::system()).await;
    let trust = trust.map_err(|e| e.to_string())?;
    let kept = store.records(paracord::ID, paracord::book::KIND).await;
    let kept = kept.map_err(|e| e.to_string())?;
    let known = kept.into_iter().map(|(name, kept)| {
        let peer = paracord::record::Peer::from_kept(&name, &kept).map_err(|e| e.to_string())?;
        let standing = trust.standing(paracord::ID, &name);
        Ok(Known { peer, standing })
    });
    known.collect()
}

/// Our own Paracord keys with their ids, as the ledger has them; none, where there is no ledger.
pub(super) async fn paracord_keys(config: &Config) -> Result<Vec<(String, String, i64)>, String> {
    let Ok(store) = Store::open_read_only(&config.store).await else {
        return Ok(Vec::new());
    };
    let keys = store.server_keys(paracord::ID).await;
    store.close().await;
    keys.map_err(|e| e.to_string())
}
