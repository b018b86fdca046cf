//! A process's connection to a cluster: production's `Commands` over the simulated network.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use futures::future::{Either, select};
use reshard::cluster::command::{Commands, Reply, Request, SendError};
use tokio::sync::oneshot;

use super::fate::Fate;
use super::mail::{Message, Network};
use crate::executor::{ProcessId, WORLD};
use crate::mongo::cluster::Cluster;
use crate::mongo::serve::Caller;

/// One process's way to one cluster.
pub(crate) struct Connection {
    network: Network,
    cluster: Cluster,
    caller: Caller,
}

impl Connection {
    /// Connects `process` under the name `app`.
    pub(crate) fn open(network: Network, cluster: Cluster, process: ProcessId, app: Arc<str>) -> Self {
        cluster.state().connections.open(&app, process);
        Self { network, cluster, caller: Caller { process, app } }
    }

    fn is_cut(&self) -> bool {
        self.network.is_cut(self.caller.process, self.cluster.index())
    }
}

#[async_trait]
impl Commands for Connection {
    async fn run(&self, request: Request) -> Result<Reply, SendError> {
        let executor = &self.network.executor;
        if self.is_cut() {
            executor.sleep(Duration::from_millis(5)).await;
            return Err(SendError::NotSent("no server can be reached".into()));
        }
        request.must_be_due()?;
        let name = request.body.iter().next().and_then(Result::ok).map_or("", |(name, _)| name.as_str());
        let (id, fate, message) = self.network.send(self.caller.process, self.cluster.index(), name);
        if fate.refused {
            self.network.arrived(id);
            return Err(SendError::NotSent("the connection was refused".into()));
        }
        let limit = fate.given_up.map_or(request.limit, |early| early.min(request.limit));
        let (sender, receiver) = oneshot::channel();
        self.cluster.state().connections.sent(&self.caller.app);
        let delivery = Delivery {
            network: self.network.clone(),
            cluster: self.cluster.clone(),
            caller: self.caller.clone(),
            request,
            id,
            fate,
            message,
        };
        executor.spawn(WORLD, "delivery", delivery.run(sender).boxed());
        match select(receiver, executor.sleep(limit)).await {
            Either::Left((Ok(reply), _)) => Ok(reply),
            Either::Left((Err(_), _)) => Err(SendError::Unknown("the connection broke".into())),
            Either::Right(((), _)) => Err(SendError::Unknown("no answer in time".into())),
        }
    }
}

/// A command on its way; it belongs to the world, not to its sender.
struct Delivery {
    network: Network,
    cluster: Cluster,
    caller: Caller,
    request: Request,
    id: u64,
    fate: Fate,
    message: Message,
}

impl Delivery {
    async fn run(self, sender: oneshot::Sender<Reply>) {
        let released = self.travel().await;
        let orphan = self.network.executor.crashed(self.caller.process);
        let severed = self.network.arrived(self.id);
        let lost = severed || !released && (self.fate.request_lost || (orphan && self.fate.orphan_lost));
        let reply = if lost {
            None
        } else {
            Some(self.cluster.serve(&self.caller, &self.request, self.fate.execution).await)
        };
        {
            let mut state = self.cluster.state();
            state.connections.ended(&self.caller.app);
        }
        self.network.executor.record(self.id << 1 | u64::from(lost));
        if let Some(reply) = reply {
            self.answer(reply, sender).await;
        }
    }

    /// Waits for the arrival; true if a schedule released it.
    async fn travel(&self) -> bool {
        if !self.message.held {
            let arrival = pin!(self.network.executor.sleep(self.fate.transit));
            let released = pin!(self.message.gate.notified());
            if let Either::Right(_) = select(arrival, released).await {
                return true;
            }
        }
        loop {
            let cut = self.network.is_cut(self.caller.process, self.cluster.index());
            let waits_for_release = self.message.held;
            if !cut && !waits_for_release {
                return false;
            }
            // Nobody runs between the look and this.
            let mut healed = pin!(self.network.healed.notified());
            healed.as_mut().enable();
            let released = pin!(self.message.gate.notified());
            if let Either::Right(_) = select(healed, released).await {
                return true;
            }
        }
    }

    async fn answer(&self, reply: Reply, sender: oneshot::Sender<Reply>) {
        let executor = &self.network.executor;
        executor.sleep(self.fate.reply_transit).await;
        if self.network.is_cut(self.caller.process, self.cluster.index()) {
            // The sender hears nothing at all, until its own limit.
            executor.sleep(self.request.limit).await;
            return;
        }
        if !self.fate.reply_lost {
            let _ = sender.send(reply);
        }
    }
}
