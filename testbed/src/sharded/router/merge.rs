//! The events of several shards in one order.

use std::collections::VecDeque;

use bson::RawDocumentBuf;
use bson::raw::RawArrayBuf;

use super::failure::Failure;

/// Most bytes of events in one batch; the largest event fits beside it into a reply.
const BATCH_BYTES: usize = 15 << 20;

/// What one shard has sent and the client has not got.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Events with their tokens.
    pub(super) events: VecDeque<(String, RawDocumentBuf)>,
    pub(super) bytes: usize,
    /// The shard will send nothing any more that comes before this token.
    pub(super) promised: String,
    pub(super) failure: Option<Failure>,
}

#[derive(Debug)]
pub(super) struct Merge {
    pub(super) queues: Vec<Queue>,
    /// Where the client is: it has got everything up to this token.
    pub(super) position: String,
    pub(super) ended: bool,
}

impl Merge {
    /// Takes what no shard can come before any more.
    pub(super) fn take(&mut self, limit: usize) -> RawArrayBuf {
        let (mut taken, mut count, mut bytes) = (RawArrayBuf::new(), 0, 0);
        loop {
            let heads = self.queues.iter().enumerate();
            let heads = heads.filter_map(|(index, queue)| Some((&queue.events.front()?.0, index)));
            let Some((token, index)) = heads.min() else { break };
            let behind = |(other, queue): (usize, &Queue)| {
                other != index && queue.events.is_empty() && queue.promised < *token
            };
            if self.queues.iter().enumerate().any(behind) {
                break;
            }
            let queue = &mut self.queues[index];
            let next = queue.events.front().map_or(0, |(_, event)| event.as_bytes().len());
            if count >= limit || (count > 0 && bytes + next > BATCH_BYTES) {
                return taken;
            }
            let Some((token, event)) = queue.events.pop_front() else { break };
            (count, bytes, queue.bytes) = (count + 1, bytes + next, queue.bytes.saturating_sub(next));
            self.ended = event.get_str("operationType").is_ok_and(|kind| kind == "invalidate");
            taken.push(event);
            self.position = token;
            if self.ended {
                return taken;
            }
        }
        // Nothing more can be taken: all shards are as far as the least of them promises.
        if let Some(promised) = self.queues.iter().map(|queue| &queue.promised).min()
            && *promised > self.position
        {
            self.position.clone_from(promised);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    fn queue(events: &[&str], promised: &str) -> Queue {
        let events = events.iter().map(|token| ((*token).to_owned(), rawdoc! {"_id": *token})).collect();
        Queue { events, promised: promised.to_owned(), ..Queue::default() }
    }

    fn merge(queues: Vec<Queue>) -> Merge {
        Merge { queues, position: String::new(), ended: false }
    }

    fn tokens(events: &RawArrayBuf) -> Vec<String> {
        let id = |event: bson::raw::RawBsonRef<'_>| {
            event.as_document().unwrap().get_str("_id").unwrap().to_owned()
        };
        events.into_iter().map(|event| id(event.unwrap())).collect()
    }

    #[test]
    fn a_quiet_shard_holds_back_what_it_could_still_precede() {
        let mut merge = merge(vec![queue(&["2", "4"], "5"), queue(&["1"], "3")]);
        assert_eq!(tokens(&merge.take(10)), ["1", "2"]);
        assert_eq!(merge.position, "3");
        merge.queues[1].promised = String::from("6");
        assert_eq!(tokens(&merge.take(10)), ["4"]);
        assert_eq!(merge.position, "5");
    }

    #[test]
    fn the_position_is_that_of_the_last_event_when_there_is_more() {
        let mut merge = merge(vec![queue(&["1", "2"], "5"), queue(&[], "5")]);
        assert_eq!(tokens(&merge.take(1)), ["1"]);
        assert_eq!(merge.position, "1");
    }
}
