//! A replica set of real servers.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bson::oid::ObjectId;
use bson::{Bson, Document, doc};
use futures::future::{join_all, try_join_all};
use mongodb::Client;
use parking_lot::RwLock;

use crate::access::{self, Access, User};
use crate::builder::{ReplicaSetBuilder, Role};
use crate::data_dir::DataDir;
use crate::process::Node;
use crate::wait::{wait_for, wait_for_value};

/// How long elections and the first synchronization may take, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// How long a node that stepped down would stay ineligible if nothing lifted that.
const STEP_DOWN_SECONDS: i32 = 60;

/// A replica set whose servers run until it is dropped.
#[derive(Debug)]
pub struct ReplicaSet {
    name: String,
    // Dropped before the data they use.
    nodes: Vec<Node>,
    access: Arc<RwLock<Access>>,
    _data: DataDir,
}

impl ReplicaSet {
    /// A set with one member, no access control and no TLS, unless the builder is told otherwise.
    pub fn builder(name: &str) -> ReplicaSetBuilder {
        ReplicaSetBuilder::new(name)
    }

    pub(crate) fn new(name: String, nodes: Vec<Node>, access: Arc<RwLock<Access>>, data: DataDir) -> Self {
        Self { name, nodes, access, _data: data }
    }

    /// Makes a set of the servers, creates the user, and waits until all members are in order.
    pub(crate) async fn initiate(
        &self,
        election_timeout_ms: i32,
        role: Role,
        user: Option<User>,
    ) -> Result<()> {
        let members: Vec<Document> =
            (0_i32..).zip(&self.nodes).map(|(id, node)| doc! {"_id": id, "host": node.address()}).collect();
        let settings = doc! {"electionTimeoutMillis": election_timeout_ms, "heartbeatIntervalMillis": 500};
        let mut config = doc! {"_id": &self.name, "members": members, "settings": settings};
        if role == Role::Config {
            config.insert("configsvr", true);
        }
        let first = self.nodes.first().ok_or_else(|| anyhow!("no nodes"))?;
        first.admin(doc! {"replSetInitiate": config}).await.with_context(|| first.log_tail())?;
        if self.nodes.len() > 1 {
            self.first_election(first).await?;
        }
        let primary = self.primary().await?;
        if let Some(user) = user {
            // Allowed without login, from this machine, as long as there is no user at all.
            let create = doc! {"createUser": &user.name, "pwd": &user.password, "roles": ["root"]};
            self.nodes[primary].admin(create).await.context("creating the user")?;
            self.access.write().user = Some(user);
        }
        self.all_members_ready().await
    }

    /// Asks the first member to stand for election until there is a primary: by itself it would do so only
    /// after the election timeout. It is refused until the others have heard of the set.
    async fn first_election(&self, first: &Node) -> Result<()> {
        let elected = || async {
            if self.current_primary().await?.is_some() {
                return Ok(true);
            }
            // With access control this is refused too, since there is no user yet.
            let _ = first.admin(doc! {"replSetStepUp": 1, "skipDryRun": true}).await;
            Ok(false)
        };
        wait_for(&format!("a first primary of {}", self.name), LIMIT, elected)
            .await
            .with_context(|| self.log_tails())
    }

    /// Waits until every running member is primary or secondary.
    pub async fn all_members_ready(&self) -> Result<()> {
        let ready = || async {
            for node in self.nodes.iter().filter(|node| node.pid().is_some()) {
                let hello = node.hello().await?;
                if !is_true(&hello, "ismaster") && !is_true(&hello, "secondary") {
                    bail!("{} is neither primary nor secondary: {hello}", node.name());
                }
            }
            Ok(true)
        };
        wait_for(&format!("all members of {} to be ready", self.name), LIMIT, ready)
            .await
            .with_context(|| self.log_tails())?;
        self.any_may_take_over().await
    }

    /// A member that has copied another keeps no changes from before that. One that is further behind cannot follow it,
    /// and were it to take over now, nothing would have a majority. What all have acknowledged leaves none behind.
    async fn any_may_take_over(&self) -> Result<()> {
        let running = self.nodes.iter().filter(|node| node.pid().is_some()).count();
        if running < 2 {
            return Ok(());
        }
        let members = i32::try_from(running).context("so many members")?;
        let leveled = || async {
            let Some(primary) = self.current_primary().await? else { bail!("there is no primary") };
            let concern = doc! {"w": members, "wtimeout": 1000};
            let note = doc! {"appendOplogNote": 1, "data": {"testbed": "level"}, "writeConcern": concern};
            let answer = self.nodes[primary].admin(note).await?;
            Ok(!answer.contains_key("writeConcernError"))
        };
        wait_for(&format!("all members of {} to be level", self.name), LIMIT, leveled)
            .await
            .with_context(|| self.log_tails())
    }

    /// Name of the set.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `mongodb://[user:password@]host:port,.../?replicaSet=name[&authSource=admin][&tls...]`
    pub fn uri(&self) -> String {
        let hosts: Vec<&str> = self.nodes.iter().map(Node::address).collect();
        self.access.read().uri(&hosts.join(","), &format!("replicaSet={}", self.name))
    }

    /// `name/host:port,...`, as the config server wants it.
    pub(crate) fn connection_string(&self) -> String {
        let hosts: Vec<&str> = self.nodes.iter().map(Node::address).collect();
        format!("{}/{}", self.name, hosts.join(","))
    }

    /// CPU time that the running members used since they were started.
    pub fn cpu_seconds(&self) -> f64 {
        self.nodes.iter().filter_map(Node::cpu_seconds).sum()
    }

    /// URI of member `index` alone, as [`Node::uri`].
    ///
    /// # Panics
    /// If there is no such member.
    pub fn direct_uri(&self, index: usize) -> String {
        self.nodes[index].uri()
    }

    /// A new client of the whole set, logged in if the set has a user.
    pub async fn client(&self) -> Result<Client> {
        access::connect(&self.uri()).await
    }

    /// Member `index`.
    ///
    /// # Panics
    /// If there is no such member.
    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    /// All members.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Waits until there is a writable primary; returns its index.
    pub async fn primary(&self) -> Result<usize> {
        self.primary_other_than(None).await
    }

    /// Waits until there is a writable primary that is none of `not`.
    async fn primary_other_than(&self, not: Option<usize>) -> Result<usize> {
        let look = || async { Ok(self.current_primary().await?.filter(|index| Some(*index) != not)) };
        let what = match not {
            Some(old) => format!("a primary of {} other than node {old}", self.name),
            None => format!("a primary of {}", self.name),
        };
        wait_for_value(&what, LIMIT, look).await.with_context(|| self.log_tails())
    }

    /// The node that is primary now. When two say so (one was cut off and has not noticed), the one
    /// elected last. An error, if no node answers.
    async fn current_primary(&self) -> Result<Option<usize>> {
        let running = (0..).zip(&self.nodes).filter(|(_, node)| node.pid().is_some());
        let answers = join_all(running.map(|(index, node)| async move { (index, node.hello().await) })).await;
        let errors: Vec<String> = answers
            .iter()
            .filter_map(|(_, answer)| answer.as_ref().err())
            .map(|e| format!("{e:#}"))
            .collect();
        if errors.len() == answers.len() {
            bail!("no node answers: {}", errors.join("; "));
        }
        let primaries = answers.into_iter().filter_map(|(index, answer)| {
            let hello = answer.ok().filter(|hello| is_true(hello, "ismaster"))?;
            Some((hello.get_object_id("electionId").ok(), index))
        });
        Ok(primaries
            .max_by_key(|(election, _): &(Option<ObjectId>, usize)| election.map(|id| id.bytes()))
            .map(|(_, index)| index))
    }

    /// Makes the primary step down and waits until another node is primary; in a set of one, until it is
    /// primary again.
    pub async fn stepdown(&self) -> Result<()> {
        let old = self.primary().await?;
        let command = doc! {
            "replSetStepDown": STEP_DOWN_SECONDS,
            // A set of one would wait all that time for others.
            "secondaryCatchUpPeriodSecs": if self.nodes.len() > 1 { 5 } else { 0 },
            "force": true,
        };
        self.nodes[old].admin(command).await?;
        if self.nodes.len() > 1 {
            self.primary_other_than(Some(old)).await?;
        }
        // Eligible again at once, so that the next change of primary does not have to wait.
        // A set of one may have elected itself already, and a primary cannot be frozen or thawed.
        let _ = self.nodes[old].admin(doc! {"replSetFreeze": 0}).await;
        if self.nodes.len() == 1 {
            self.primary().await?;
        }
        Ok(())
    }

    /// Stops all members in an orderly way.
    pub async fn stop_all(&self) -> Result<()> {
        try_join_all(self.nodes.iter().map(Node::stop)).await.map(drop)
    }

    /// Starts all members that are down, at their old addresses with their old data, and waits until
    /// there is a primary.
    pub async fn start_all(&self) -> Result<()> {
        try_join_all(self.nodes.iter().map(Node::start)).await?;
        self.primary().await.map(drop)
    }

    /// Kills all members with SIGKILL.
    pub async fn kill9_all(&self) -> Result<()> {
        try_join_all(self.nodes.iter().map(Node::kill9)).await.map(drop)
    }

    /// Suspends all members.
    pub async fn pause_all(&self) -> Result<()> {
        try_join_all(self.nodes.iter().map(Node::pause)).await.map(drop)
    }

    /// Lets all suspended members go on.
    pub async fn resume_all(&self) -> Result<()> {
        try_join_all(self.nodes.iter().map(Node::resume)).await.map(drop)
    }

    /// Sets a fail point on the primary. `point` is the whole command:
    /// `{configureFailPoint: "failCommand", mode: {times: 1}, data: {...}}`.
    pub async fn fail_point(&self, point: Document) -> Result<()> {
        let primary = self.primary().await?;
        self.nodes[primary].admin(point).await.map(drop)
    }

    /// Ends of the logs of all members, for error messages.
    pub fn log_tails(&self) -> String {
        self.nodes.iter().map(Node::log_tail).collect::<Vec<_>>().join("\n")
    }
}

fn is_true(document: &Document, field: &str) -> bool {
    document.get(field) == Some(&Bson::Boolean(true))
}
