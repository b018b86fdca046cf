# Retryable reads and writes, and clients that come and go, while the primaries of both clusters step down.
#
# Environment: RESHARD_URI. Without RESHARD_ACROSS it only makes what is to move. Else it says "ready" once it works,
# and goes on until a line comes: then each write that was acknowledged counts once, and nobody has seen an error. The
# driver has no threads; each worker is a process.

use strict;
use warnings;
use IO::Handle;
use MongoDB;
use POSIX ();

my $uri = $ENV{RESHARD_URI} . ($ENV{RESHARD_URI} =~ /\?/ ? '&' : '?') . 'retryWrites=true&retryReads=true';
my ($workers, $visitors) = (3, 1);
# So many more, each, once both clusters have their new primaries.
my $afterwards = 20;

sub items { MongoDB->connect($uri)->db('app')->coll('items') }

sub write_once {
    my ($items, $number) = @_;
    $items->update_one({ _id => "count-$number" }, { '$inc' => { n => 1 } }, { upsert => 1 });
    my $id = $items->insert_one({ by => $number })->inserted_id;
    $items->find_one({ _id => $id }) or die "what was inserted is not there\n";
}

# A client that does one thing, and goes.
sub meet { items()->find_one({ _id => 'seed' }) or die "the seed is not there\n" }

# A process: it says a line after its fifth turn, and at its end how many there were. `$go` ends when the word comes.
sub worker {
    my ($number, $go, $tell) = @_;
    my $items = items();
    my ($left, $turns) = ($afterwards, 0);
    while ($left > 0) {
        vec(my $bits = '', fileno $go, 1) = 1;
        $left-- if select $bits, undef, undef, 0;
        eval { $number < $workers ? write_once($items, $number) : meet(); 1 } or do {
            # Whatever it is, an application would have seen it.
            print $tell "FAILED worker $number: $@\n";
            last;
        };
        $turns++;
        print $tell "works\n" if $turns == 5;
    }
    print $tell "works\n" if $turns < 5;
    print $tell "$turns\n";
}

if (!defined $ENV{RESHARD_ACROSS}) {
    my $app = MongoDB->connect($uri)->db('app');
    $app->coll($_)->insert_one({ _id => 'seed' }) for qw(items accounts orders stock);
    exit 0;
}
$| = 1;
pipe my $go, my $word or die;
my @told;
for my $number (0 .. $workers + $visitors - 1) {
    pipe my $read, my $tell or die;
    $tell->autoflush(1);
    my $child = fork // die;
    if (!$child) {
        close $word;
        worker($number, $go, $tell);
        close $tell;
        POSIX::_exit(0);
    }
    close $tell;
    push @told, $read;
}
my $failed = 0;

# The next line of a worker that is no failure.
sub told {
    my ($read) = @_;
    while (my $line = <$read>) {
        return $line if $line =~ /^(works|\d+)$/;
        $failed = 1;
        print $line;
    }
    die "a worker is gone\n";
}

told($_) for @told;
print "ready\n";
my $line = <STDIN>;
close $word;
my @turns = map { told($_) + 0 } @told;
my $items = items();
for my $number (0 .. $workers - 1) {
    last if $failed;
    my $found = $items->find_one({ _id => "count-$number" })->{n};
    my $inserted = $items->count_documents({ by => $number });
    next if $found == $turns[$number] && $inserted == $turns[$number];
    print "FAILED worker $number: $turns[$number] were acknowledged, $found count, $inserted documents\n";
    $failed = 1;
}
print "turns: @turns\n";
exit $failed;
