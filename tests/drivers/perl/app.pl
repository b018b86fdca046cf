# An application with the driver for Perl. It knows no proxy, only what the phase of a migration refuses.
#
# Environment: RESHARD_URI, RESHARD_PHASE (plain, dual, reads, half, moved), RESHARD_OLD, RESHARD_NEW, and
# RESHARD_ACROSS: the phase that begins in the middle of this run; it says "ready" then and reads a line.

use strict;
use warnings;
use BSON::Types ':all';
use MongoDB;
use Time::HiRes qw(sleep time);

my @PHASES = qw(plain dual reads half moved);
my ($phase, $across) = @ENV{qw(RESHARD_PHASE RESHARD_ACROSS)};
my ($migrates, $mixed, $moved) = ($phase ne 'plain', $phase eq 'half', $phase eq 'moved');
my $REFUSED = 115;
my $run;    # Of the check that runs.

my $client = MongoDB->connect("$ENV{RESHARD_URI}?appname=driver-test&serverSelectionTimeoutMS=10000&retryWrites=true&retryReads=true");
my $app = $client->db('app');
my ($items, $accounts, $feed, $tags) = map { $app->coll($_) } qw(items accounts feed tags);

sub equal {
    my ($seen, $wanted, $what) = @_;
    $_ //= 'nothing' for $seen, $wanted;
    die +($what // 'value') . ": saw $seen, wanted $wanted, line " . (caller)[2] . "\n" if "$seen" ne "$wanted";
}

# What the migration does not allow fails at once, and says why.
sub refused {
    my ($act, $word) = @_;
    eval { $act->(); 1 } and die 'it was not refused, line ' . (caller)[2] . "\n";
    my $error = $@;
    die $error unless ref $error && $error->can('code');
    equal($error->code, $REFUSED, "code of $error");
    die "$word is not in $error" if defined $word && "$error" !~ /$word/;
}

sub duplicate {
    my ($act) = @_;
    eval { $act->(); 1 } and die 'no duplicate key error, line ' . (caller)[2] . "\n";
    die $@ unless ref $@ && $@->isa('MongoDB::DuplicateKeyError');
}

sub until_true {
    my ($what, $look) = @_;
    my $end = time + 20;
    while (time < $end) {
        my $seen = $look->();
        return $seen if $seen;
        sleep 0.05;
    }
    die "waited for $what\n";
}

sub name { "$run-$_[0]" }

sub documents {
    my ($many) = @_;
    map { { _id => name(sprintf '%03d', $_), run => $run, n => $_, email => name($_) } } 0 .. $many - 1;
}

sub one_document {
    my %by_id = (_id => $run);
    equal($items->insert_one({ %by_id, n => 1 })->inserted_id, $run);
    duplicate(sub { $items->insert_one({%by_id}) });
    my $updated = $items->update_one({%by_id}, { '$inc' => { n => 2 }, '$set' => { list => [ 1, 2, 3 ] } });
    equal($updated->matched_count, 1);
    equal($updated->modified_count, 1);
    equal($items->find_one({%by_id})->{n}, 3);
    equal($items->replace_one({%by_id}, { n => 7 })->modified_count, 1);
    equal($items->find_one({%by_id})->{list}, undef);
    my $upserted = $items->update_one({ _id => name('up') }, { '$inc' => { n => 1 } }, { upsert => 1 });
    equal($upserted->upserted_id, name('up'));
    equal($items->find_one_and_update({%by_id}, { '$inc' => { n => 1 } }, { returnDocument => 'after' })->{n}, 8);
    equal($items->find_one_and_delete({ _id => name('up') })->{n}, 1);
    if ($mixed) { refused(sub { $items->delete_one({ n => 8 }) }, '_id') }
    equal($items->delete_one({%by_id})->deleted_count, 1);
}

sub bulk {
    for my $ordered (0, 1) {
        my $failed = eval { $items->insert_many([ map { { _id => name($_), run => $run } } 0, 1, 0, 2 ], { ordered => $ordered }); 1 };
        die "no error\n" if $failed || !$@->isa('MongoDB::DuplicateKeyError');
        equal($@->result->inserted_count, $ordered ? 2 : 3);
        my $result = $items->bulk_write([
            [ insert_one => [ { _id => name('x'), run => $run } ] ],
            [ update_one => [ { _id => name(0) }, { '$set' => { a => 1 } } ] ],
            [ update_many => [ { run => $run }, { '$set' => { b => 1 } } ] ],
            [ replace_one => [ { _id => name('y') }, { run => $run }, { upsert => 1 } ] ],
            [ delete_one => [ { _id => name(1) } ] ],
        ], { ordered => $ordered });
        equal($result->inserted_count, 1);
        equal($result->upserted_count, 1);
        equal($result->deleted_count, 1);
        equal($items->delete_many({ run => $run })->deleted_count, $ordered ? 3 : 4);
    }
}

sub cursors {
    $items->insert_many([ documents(300) ]);
    my $found = $items->find({ run => $run }, { sort => { n => -1 }, batchSize => 17 });
    equal(join(' ', map { $_->{n} } $found->all), join(' ', reverse 0 .. 299));
    my $grouped = $items->aggregate([
        { '$match' => { run => $run } }, { '$group' => { _id => { '$mod' => [ '$n', 3 ] }, all => { '$sum' => 1 } } }, { '$sort' => { _id => 1 } },
    ]);
    equal(join(' ', map { $_->{all} } $grouped->all), '100 100 100');
    equal($items->count_documents({ run => $run, n => { '$gte' => 100 } }), 200);
    equal(scalar($items->distinct('run', { run => $run })->all), 1);
    my $join = sub {
        $items->aggregate([
            { '$match' => { _id => name('003') } }, { '$lookup' => { from => 'tags', localField => 'n', foreignField => 'n', as => 'tags' } },
        ])->all;
    };
    $tags->insert_one({ n => 3 });
    if ($mixed || $moved) { refused($join) }
    else { equal(scalar @{ ($join->())[0]{tags} }, 1) }
    $tags->drop;
    equal($items->delete_many({ run => $run })->deleted_count, 300);
}

sub transactions {
    my $session = $client->start_session;
    $accounts->insert_many([ documents(2) ]);
    duplicate(sub { $accounts->insert_one({ email => name(1) }) });
    my $transfer = sub {
        $accounts->update_one({ _id => name('000') }, { '$inc' => { n => -30 } }, { session => $session });
        $accounts->update_one({ email => name(1) }, { '$inc' => { n => 30 } }, { session => $session });
    };
    $session->start_transaction;
    $transfer->();
    equal($accounts->find_one({ _id => name('000') })->{n}, 0, 'outside');
    $session->commit_transaction;
    equal($accounts->find_one({ _id => name('000') })->{n}, -30);
    equal($accounts->find_one({ _id => name('001') })->{n}, 31);
    $session->start_transaction;
    $transfer->();
    $session->abort_transaction;
    equal($accounts->find_one({ _id => name('000') })->{n}, -30);
    if ($mixed) {
        $session->start_transaction;
        refused(sub { $items->insert_one({ _id => $run }, { session => $session }) }, 'transactions');
        $session->abort_transaction;
    }
    $session->end_session;
    equal($accounts->delete_many({ run => $run })->deleted_count, 2);
}

# The next such command on each cluster fails so; nothing: none does.
sub fail_point {
    my ($data) = @_;
    for my $cluster (@ENV{qw(RESHARD_OLD RESHARD_NEW)}) {
        my @mode = $data ? (mode => { times => 1 }, data => $data) : (mode => 'off');
        MongoDB->connect($cluster)->db('admin')->run_command([ configureFailPoint => 'failCommand', @mode ]);
    }
}

sub failures_are_retried {
    my %by_id = (_id => $run);
    my @labels = (errorLabels => ['RetryableWriteError']);
    for my $way ([ closeConnection => bson_bool(1) ], [ errorCode => 10107, @labels ], [ errorCode => 91, @labels ]) {
        my $fail = sub { fail_point({ failCommands => [ $_[0] ], namespace => 'app.items', @$way }) };
        $fail->('insert');
        $items->insert_one({ %by_id, n => 0 });
        $fail->('update');
        $items->update_one({%by_id}, { '$inc' => { n => 1 } });
        $fail->('findAndModify');
        equal($items->find_one_and_update({%by_id}, { '$inc' => { n => 1 } })->{n}, 1);
        $fail->('find');
        equal($items->find_one({%by_id})->{n}, 2);
        $fail->('delete');
        equal($items->delete_one({%by_id})->deleted_count, 1);
        fail_point();
    }
}

sub change_streams {
    my $stream = $feed->watch([ { '$match' => { 'documentKey._id' => $run } } ], { maxAwaitTimeMS => 200 });
    $feed->insert_one({ _id => $run });
    equal(until_true('the event', sub { $stream->next })->{operationType}, 'insert');
    $feed->delete_one({ _id => $run });
    equal(until_true('the second event', sub { $stream->next })->{operationType}, 'delete');
}

sub grid_fs {
    my $bucket = $app->gfs({ bucket_name => 'media' });
    my $content = join '', map { pack 'N', $_ * 2654435761 % 4294967296 } 1 .. 150_000;
    my $upload = $bucket->open_upload_stream($run);
    $upload->print($content);
    my $id = $upload->close->{_id};
    my $download = $bucket->open_download_stream($id);
    my $back = do { local $/; $download->readline };
    equal(length $back, length $content);
    die "other content\n" if $back ne $content;
    equal(scalar($bucket->find({ filename => $run })->all), 1);
    $bucket->delete($id);
    equal(scalar($bucket->find({ filename => $run })->all), 0);
}

sub the_server {
    equal($client->db('admin')->run_command([ ping => 1 ])->{ok}, 1);
    eval { $client->db('admin')->run_command([ noSuchCommand => 1 ]); 1 } and die "an unknown command was taken\n";
    equal($@->code, 59);
    # Writes without acknowledgement are not tried: this driver sends them as OP_INSERT, which no server takes since 5.1.
    if ($migrates) { refused(sub { $items->drop }, 'migration') }
}

# Documents of all earlier phases are there, and this one leaves some.
sub what_was_kept {
    for my $past (@PHASES) {
        last if $past eq $phase;
        equal($items->find_one({ _id => "pl-kept-$past-$_" })->{n}, 2 * $_) for 0 .. 19;
    }
    for my $n (0 .. 19) {
        $items->insert_one({ _id => "pl-kept-$phase-$n", n => $n });
        $items->update_one({ _id => "pl-kept-$phase-$n" }, { '$inc' => { n => $n } });
    }
}

# Cursors, a session and a change stream that are open while the phase changes.
sub over_the_change {
    my @open;
    for my $collection ($items, $accounts) {
        $collection->insert_many([ documents(300) ]);
        push @open, $collection->find({ run => $run }, { sort => { n => 1 }, batchSize => 11 })->result;
        equal($open[-1]->next->{n}, $_) for 0 .. 29;
    }
    my $session = $client->start_session;
    $items->insert_one({ _id => name('s'), n => 1 }, { session => $session });
    my $stream = $feed->watch([ { '$match' => { 'documentKey._id' => name('after') } } ], { maxAwaitTimeMS => 200 });
    $| = 1;
    print "ready\n";
    my $go = <STDIN>;
    for my $cursor (@open) {
        equal($cursor->next->{n}, $_) for 30 .. 299;
        equal($cursor->next, undef);
    }
    $items->update_one({ _id => name('s') }, { '$inc' => { n => 1 } }, { session => $session });
    equal($items->find_one({ _id => name('s') }, {}, { session => $session })->{n}, 2);
    $feed->insert_one({ _id => name('after') });
    until_true('the event of the open stream', sub { $stream->next });
    $feed->delete_one({ _id => name('after') });
    equal($items->delete_one({ _id => name('s') })->deleted_count, 1);
    equal($_->delete_many({ run => $run })->deleted_count, 300) for $items, $accounts;
}

if ($phase eq 'plain' && !$across) {
    $accounts->indexes->create_one([ email => 1 ], { unique => 1 });
    $app->coll($_)->indexes->create_one([ run => 1 ]) for qw(items orders stock);
}
my %checks = (
    one_document => \&one_document, bulk => \&bulk, cursors => \&cursors, transactions => \&transactions,
    failures_are_retried => \&failures_are_retried, change_streams => \&change_streams, grid_fs => \&grid_fs,
    the_server => \&the_server, what_was_kept => \&what_was_kept,
);
%checks = (over_the_change => \&over_the_change) if $across;
my $failed = 0;
for my $check (sort keys %checks) {
    $run = 'pl-' . $phase . '-' . ($across // 'run') . '-' . $check;
    if (eval { $checks{$check}->(); 1 }) { print "ok $check\n" }
    else { $failed++; print "FAILED in phase $phase: $check: $@\n" }
}
exit($failed ? 1 : 0);
