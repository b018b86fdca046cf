//! Somebody who wants to see what converging is about to overwrite.

use async_trait::async_trait;
use bson::RawDocument;

use crate::model::key::Key;
use crate::model::namespace::Namespace;
use crate::model::side::Side;

/// Keeps what writers past the proxy have written, before it is undone.
#[async_trait]
pub trait Witness: std::fmt::Debug + Send + Sync {
    /// Whether it wants to see this key.
    fn watches(&self, namespace: &Namespace, key: &Key) -> bool;

    /// The mirror, which is `side`, is about to lose what it has of these keys; `None`: it has nothing, and
    /// gets something. Nothing is overwritten before this returns; it may be called again for the same keys.
    ///
    /// # Errors
    /// In words, why it could not be kept; nothing is overwritten then.
    async fn sees(
        &self,
        side: Side,
        namespace: &Namespace,
        lost: Vec<(Key, Option<&RawDocument>)>,
    ) -> Result<(), String>;
}
