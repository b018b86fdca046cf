//! Inserts, updates and deletes: to the one shard that owns what they write where that is clear, else to the
//! engine.

use bson::{RawDocument, RawDocumentBuf, doc};
use bytes::{Bytes, BytesMut};
use reshard::cluster::command::number;
use reshard::wire::element::Elements;
use reshard::wire::op_msg::OpMsg;
use reshard::wire::reply::answer_to;

use super::Router;
use super::backend::Repeat;
use super::failure::{Failure, NAMESPACE_NOT_FOUND};
use super::forward::{ATTEMPTS, Asked};
use super::modify::{WOULD_CHANGE_SHARD, needs_number};
use super::repeats::WriteId;
use super::retryable::Done;
use super::seen::Seen;
use super::server::Answer;
use super::targets::{Kind, targets};
use super::versioned::pause;

impl Router {
    /// One with a number goes to the shards, which know it when it comes again. Where only the engine knows
    /// the shards, the number is taken off, since the engine takes none, and when the write comes again it is
    /// answered from memory.
    pub(super) async fn write(
        &self,
        asked: Asked<'_>,
        kind: Kind,
        reply: &mut BytesMut,
    ) -> Result<Answer, Failure> {
        let Some(id) = write_id(asked) else {
            return self.write_without_number(asked, kind, reply).await;
        };
        if let Some(known) = self.repeats.known(&id) {
            repeat_answer(&known, asked.parts, reply);
            return Ok(Answer::Forwarded);
        }
        let done = self.retryable(asked, kind, reply).await.map_err(Failure::of_numbered_write)?;
        let leaving = match done {
            Done::ForEngine => false,
            Done::Merged(document) if !leaves_its_shard(&document) => return Ok(Answer::Document(document)),
            Done::Passed(seen) if !refused_move(&seen, reply) => return Ok(Answer::Forwarded),
            Done::Merged(document) => {
                *reply = self.message(document, asked.parts);
                true
            }
            Done::Passed(_) => true,
        };
        Box::pin(self.remembered(asked, kind, id, leaving, reply)).await
    }

    /// A write that the shards do not know when it comes again. With `leaving`, a shard has said that the
    /// document would have to go to another, and that is in `reply`.
    async fn remembered(
        &self,
        asked: Asked<'_>,
        kind: Kind,
        id: WriteId,
        leaving: bool,
        reply: &mut BytesMut,
    ) -> Result<Answer, Failure> {
        let written = self.repeats.answer(id);
        let answer = written.get_or_try_init(|| async {
            if !leaving {
                let seen = self.to_engine(asked, kind.cluster_name(), Repeat::No, reply).await?;
                if kind != Kind::Update || !seen.write_errors || !refuses_key(reply) {
                    return Ok::<_, Failure>(Bytes::copy_from_slice(reply));
                }
            }
            let changed = self.change_of_key(asked).await?;
            Ok(changed.map_or_else(|| Bytes::copy_from_slice(reply), BytesMut::freeze))
        });
        let answer = answer.await?.clone();
        repeat_answer(&answer, asked.parts, reply);
        Ok(Answer::Forwarded)
    }

    async fn write_without_number(
        &self,
        asked: Asked<'_>,
        kind: Kind,
        reply: &mut BytesMut,
    ) -> Result<Answer, Failure> {
        match self.single(asked, kind, reply).await? {
            Some(seen) if refused_move(&seen, reply) => {
                let error = needs_number().0;
                let error = doc! {"index": 0, "code": error.get("code"), "errmsg": error.get("errmsg")};
                let refusal = doc! {"n": 0, "nModified": 0, "writeErrors": [error], "ok": 1.0};
                Ok(Answer::Document(RawDocumentBuf::try_from(&refusal)?))
            }
            Some(_) => Ok(Answer::Forwarded),
            None => {
                self.to_engine(asked, kind.cluster_name(), Repeat::No, reply).await?;
                Ok(Answer::Forwarded)
            }
        }
    }

    /// A single statement for a single shard. If the shard does not know the routing table, nothing was done;
    /// of several statements some may have been, so these are not for here.
    async fn single(
        &self,
        asked: Asked<'_>,
        kind: Kind,
        reply: &mut BytesMut,
    ) -> Result<Option<Seen>, Failure> {
        let statements = super::raw::list(asked.message, asked.parts, asked.body()?, kind.list())?;
        let &[statement] = &statements[..] else { return Ok(None) };
        for attempt in 1..=ATTEMPTS {
            let table = match self.table(asked.database(), asked.collection(), false).await {
                Err(failure) if failure.code() == NAMESPACE_NOT_FOUND => return Ok(None),
                table => table?,
            };
            let Some(shards) = targets(&table, kind, statement)? else { return Ok(None) };
            let [shard] = &shards[..] else { return Ok(None) };
            if let Some(seen) = self.to_shard(asked, &table, shard, Repeat::No, reply).await? {
                return Ok(Some(seen));
            }
            self.forget(&table.namespace);
            if attempt > 1 {
                pause(attempt).await;
            }
        }
        Ok(None)
    }
}

fn repeat_answer(answer: &[u8], parts: &OpMsg, reply: &mut BytesMut) {
    reply.clear();
    reply.extend_from_slice(answer);
    answer_to(reply, parts.header.request_id);
}

/// Whether the engine refuses an update since it changes a shard key.
fn refuses_key(reply: &[u8]) -> bool {
    let text = b"update to shard key field";
    reply.windows(text.len()).any(|window| window == text)
}

fn refused_move(seen: &Seen, reply: &[u8]) -> bool {
    (!seen.ok || seen.write_errors) && seen.body(reply).is_some_and(leaves_its_shard)
}

/// Whether a shard says that a document would have to go to another.
fn leaves_its_shard(reply: &RawDocument) -> bool {
    let says = |document: &RawDocument| number(document, "code") == Some(WOULD_CHANGE_SHARD);
    let errors = reply.get_array("writeErrors").ok();
    says(reply)
        || errors.is_some_and(|errors| {
            errors.into_iter().flatten().filter_map(|error| error.as_document()).any(says)
        })
}

/// By what a write is recognised when it comes again.
fn write_id(asked: Asked<'_>) -> Option<WriteId> {
    let (session, number) = (asked.command.session()?, asked.command.txn_number?);
    let elements = Elements::within(asked.message, asked.parts.body.clone()).ok()?;
    let mut statements = Vec::new();
    for element in elements.flatten().filter(|element| matches!(element.key, b"stmtId" | b"stmtIds")) {
        statements.extend_from_slice(element.value());
    }
    Some(WriteId { session, number, statements })
}
