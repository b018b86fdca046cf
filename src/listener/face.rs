//! How a listener looks to drivers: what is configured, and what a client of one of its sockets is shown.

use std::net::SocketAddr;
use std::sync::Arc;

use bson::oid::ObjectId;
use bson::raw::{CStr, RawArrayBuf};
use bson::{DateTime, RawDocument, RawDocumentBuf, Timestamp, rawdoc};

/// The tags of a replica set's member.
pub type Tags = Vec<(String, String)>;

/// How a listener looks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Face {
    /// A router (mongos).
    #[default]
    Mongos,
    /// A replica set.
    ReplicaSet(ReplicaSet),
    /// A service behind a balancer of connections, for drivers with `loadBalanced=true`.
    LoadBalanced,
}

impl Face {
    /// Its name in the configuration.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Mongos => "mongos",
            Self::ReplicaSet(_) => "replica-set",
            Self::LoadBalanced => "load-balanced",
        }
    }

    /// Where its secondaries listen.
    pub fn secondaries(&self) -> impl Iterator<Item = &Secondary> {
        let set = match self {
            Self::ReplicaSet(set) => Some(set),
            Self::Mongos | Self::LoadBalanced => None,
        };
        set.into_iter().flat_map(|set| &set.secondaries)
    }
}

/// A replica set that is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaSet {
    /// Its name, that of `replicaSet=`.
    pub name: String,
    /// The name and port by which applications reach the primary; `None` is the address that was bound.
    pub host: Option<String>,
    /// Tags of the primary.
    pub tags: Tags,
    /// Its secondaries.
    pub secondaries: Vec<Secondary>,
}

/// A secondary that is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secondary {
    /// Where it listens; port 0 takes a free one.
    pub address: SocketAddr,
    /// The name and port by which applications reach it; `None` is the address that was bound.
    pub host: Option<String>,
    /// Its tags.
    pub tags: Tags,
}

/// What the clients of one socket are shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Appearance {
    /// A router.
    Router,
    /// A router behind a balancer, by the name of this process.
    Service(ObjectId),
    /// A member of a replica set.
    Member(Member),
}

/// A member of a replica set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    set: Arc<Set>,
    me: String,
    tags: Tags,
}

#[derive(Debug, PartialEq, Eq)]
struct Set {
    name: String,
    /// The primary first.
    hosts: Vec<String>,
}

impl Appearance {
    /// What the sockets of `face` show, the listener's own first; `bound` is where they listen, in that order.
    pub(super) fn of(face: &Face, service: ObjectId, bound: &[SocketAddr]) -> Vec<Self> {
        let set = match face {
            Face::Mongos => return vec![Self::Router],
            Face::LoadBalanced => return vec![Self::Service(service)],
            Face::ReplicaSet(set) => set,
        };
        let others = set.secondaries.iter().map(|other| (&other.host, &other.tags));
        let members: Vec<_> = [(&set.host, &set.tags)].into_iter().chain(others).collect();
        let host = |host: &Option<String>, bound: &SocketAddr| host.clone().unwrap_or(bound.to_string());
        let hosts = members.iter().zip(bound).map(|((own, _), bound)| host(own, bound)).collect();
        let set = Arc::new(Set { name: set.name.clone(), hosts });
        let member = |(me, (_, tags)): (&String, &(_, &Tags))| {
            Self::Member(Member { set: Arc::clone(&set), me: me.clone(), tags: (*tags).clone() })
        };
        set.hosts.iter().zip(&members).map(member).collect()
    }

    /// Whether writes are taken here.
    pub(super) fn is_writable(&self) -> bool {
        match self {
            Self::Router | Self::Service(_) => true,
            Self::Member(member) => member.is_primary(),
        }
    }

    /// Longest `client` document in bytes. Routers leave room for what they add on the way to a shard.
    pub(super) fn longest_introduction(&self) -> usize {
        match self {
            Self::Router | Self::Service(_) => 512,
            Self::Member(_) => 1024,
        }
    }

    /// Adds to a `hello` what tells the kind of server, in the order that servers have. `version` is what clients may
    /// wait to see replaced; `balanced` says whether the client expects a balancer.
    pub(super) fn show(
        &self,
        hello: &mut RawDocumentBuf,
        writable: &CStr,
        version: Option<&RawDocument>,
        balanced: bool,
        now: DateTime,
    ) {
        let add_version = |hello: &mut RawDocumentBuf| {
            if let Some(version) = version {
                hello.append(bson::cstr!("topologyVersion"), version.to_owned());
            }
        };
        if let Self::Member(member) = self {
            add_version(hello);
            return member.show(hello, writable, now);
        }
        hello.append(writable, true);
        hello.append(bson::cstr!("msg"), "isdbgrid");
        add_version(hello);
        if let (Self::Service(id), true) = (self, balanced) {
            hello.append(bson::cstr!("serviceId"), *id);
        }
    }
}

impl Member {
    fn is_primary(&self) -> bool {
        self.set.hosts.first() == Some(&self.me)
    }

    /// Election and configuration never change: no driver may take a process for the predecessor of another.
    fn show(&self, document: &mut RawDocumentBuf, writable: &CStr, now: DateTime) {
        let hosts: RawArrayBuf = self.set.hosts.iter().map(String::as_str).collect();
        document.append(bson::cstr!("hosts"), hosts);
        document.append(bson::cstr!("setName"), self.set.name.as_str());
        document.append(bson::cstr!("setVersion"), 1);
        document.append(writable, self.is_primary());
        document.append(bson::cstr!("secondary"), !self.is_primary());
        if let Some(primary) = self.set.hosts.first() {
            document.append(bson::cstr!("primary"), primary.as_str());
        }
        if !self.tags.is_empty() {
            let mut tags = RawDocumentBuf::new();
            for (name, value) in &self.tags {
                // The configuration lets no zero byte through.
                if let Ok(name) = bson::raw::CString::try_from(name.as_str()) {
                    tags.append(name, value.as_str());
                }
            }
            document.append(bson::cstr!("tags"), tags);
        }
        document.append(bson::cstr!("me"), self.me.as_str());
        if self.is_primary() {
            document.append(bson::cstr!("electionId"), ELECTION);
        }
        document.append(bson::cstr!("lastWrite"), last_write(now));
    }
}

/// The first election of a set, as servers count them.
const ELECTION: ObjectId = ObjectId::from_bytes([0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 1]);

/// Now, for all members: how stale a secondary of the clusters is decides whoever chooses it, which is the
/// router of this process, by the `maxStalenessSeconds` that drivers send along.
fn last_write(now: DateTime) -> RawDocumentBuf {
    let seconds = now.timestamp_millis().div_euclid(1000);
    let date = DateTime::from_millis(seconds * 1000);
    let time = Timestamp { time: u32::try_from(seconds).unwrap_or(u32::MAX), increment: 1 };
    let optime = rawdoc! { "ts": time, "t": 1_i64 };
    rawdoc! {
        "opTime": optime.clone(), "lastWriteDate": date, "majorityOpTime": optime, "majorityWriteDate": date,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set() -> Face {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let tags = vec![("dc".to_owned(), "east".to_owned())];
        let secondaries = vec![
            Secondary { address, host: None, tags },
            Secondary { address, host: Some("db3:1".into()), tags: Vec::new() },
        ];
        let host = Some("db1:27017".into());
        Face::ReplicaSet(ReplicaSet { name: "rs0".into(), host, tags: Vec::new(), secondaries })
    }

    fn shown(appearance: &Appearance, balanced: bool) -> bson::Document {
        let mut document = RawDocumentBuf::new();
        appearance.show(&mut document, bson::cstr!("ismaster"), None, balanced, DateTime::from_millis(5_999));
        bson::Document::try_from(&*document).unwrap()
    }

    #[test]
    fn members_of_a_set_name_each_other_by_where_applications_reach_them() {
        let bound = [1, 2, 3].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let members = Appearance::of(&set(), ObjectId::new(), &bound);
        let all: Vec<_> = members.iter().map(|member| shown(member, false)).collect();
        for (member, (me, is_secondary)) in
            all.iter().zip([("db1:27017", false), ("127.0.0.1:2", true), ("db3:1", true)])
        {
            let hosts: Vec<bson::Bson> = ["db1:27017", "127.0.0.1:2", "db3:1"].map(Into::into).to_vec();
            assert_eq!(*member.get_array("hosts").unwrap(), hosts);
            assert_eq!(
                (member.get_str("me").unwrap(), member.get_str("primary").unwrap()),
                (me, "db1:27017")
            );
            assert_eq!(member.get_bool("secondary").unwrap(), is_secondary);
            assert_eq!(member.contains_key("electionId"), !is_secondary);
            let last = member.get_document("lastWrite").unwrap().get_datetime("lastWriteDate").unwrap();
            assert_eq!(last.timestamp_millis(), 5_000);
        }
        assert_eq!(all[1].get_document("tags").unwrap().get_str("dc").unwrap(), "east");
        assert_eq!(members.iter().map(Appearance::is_writable).collect::<Vec<_>>(), [true, false, false]);
    }

    #[test]
    fn a_service_names_itself_to_those_who_expect_one() {
        let id = ObjectId::new();
        let service = &Appearance::of(&Face::LoadBalanced, id, &[])[0];
        assert_eq!(shown(service, true).get_object_id("serviceId").unwrap(), id);
        assert!(!shown(service, false).contains_key("serviceId"));
        let router = &Appearance::of(&Face::Mongos, id, &[])[0];
        assert_eq!(shown(router, true), bson::doc! { "ismaster": true, "msg": "isdbgrid" });
    }
}
