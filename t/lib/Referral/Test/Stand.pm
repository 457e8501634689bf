package Referral::Test::Stand;

# Copyright (C) The nginx referral module authors

=head1 NAME

Referral::Test::Stand - everything from the click to the row, to be broken

=head1 SYNOPSIS

    my $s = Referral::Test::Stand->new(workers => 2);

    $s->load(rate => 400);
    $s->kill_nginx_worker();
    $s->worker()->kill9()->start();
    my $v = $s->settle();                  # load ends, drains, is judged

=head1 DESCRIPTION

One nginx, Redis, referral-worker and database of its own in a Postgres that
all stands of a process share.  Options of new():

    workers     nginx workers (2)
    journal     parameters of referral_journal (size=64m segment=256k)
    dir         directory of the journal
    http, server, main   more configuration
    proxy => 1  nginx reaches Redis through proxy()
    headers, args   subs of the tag: more for each request of the oracle
    worker      { settings of the worker }
    worker_env  its environment
    start_later the worker is not started
    env         { } of nginx, also named in "env" directives
    pg          { }: a Postgres of its own, with these options

settle() takes

    counters => 0   nginx was started anew: its counters are not whole
    damage => 1     records were damaged: those lost are reported as gaps
    drain => 60     s until everything has to be in Postgres

=cut

use strict;
use warnings;

use JSON::PP ();
use Test::More;
use Time::HiRes qw(sleep time);

use Referral::Test;
use Referral::Test::Oracle;
use Referral::Test::Proxy;


my ($base, $shared, $number);

our %CODES = map { ("CODE$_" => { url => "https://example.com/$_?id={click_id}",
                                  code_id => $_, program_id => 7,
                                  referrer_id => 100 + $_ }) } 1 .. 12;


# the Postgres of all stands; databases are copies of one

sub shared {
    return $shared if $shared;

    $base = Referral::Test->new();
    $shared = $base->postgres(conf => { max_connections => 60 });

    return $shared;
}


sub new {
    my ($class, %arg) = @_;

    my $self = bless { %arg, journals => [] }, $class;

    eval { $self->build(%arg); 1 } and return $self;

    my $error = $@;

    if ($self->{t}) {
        eval { $self->{t}->stop_all() };
        $self->{t}->finish();
    }

    die $error;
}


sub build {
    my ($self, %arg) = @_;

    my $t;

    if ($arg{pg}) {
        $t = $self->{t} = Referral::Test->new();
        $self->{pg} = $t->postgres(%{ $arg{pg} });
        $self->{db} = 'referral';

    } else {
        $self->{pg} = shared();
        $t = $self->{t} = Referral::Test->new();
        $self->{db} = 'stand' . ++$number;
        $self->{pg}->rows("CREATE DATABASE $self->{db} TEMPLATE referral",
                          db => 'postgres');
    }

    $t->redis(%{ $arg{redis} // {} });
    $self->set_codes();

    $self->{journal} = $arg{dir} // $t->dir() . '/journal';
    push @{ $self->{journals} }, $self->{journal};
    mkdir($self->{journal});
    chmod(02770, $self->{journal});

    if ($arg{proxy}) {
        $self->{redis_url} = 'unix:' . $t->dir() . '/proxy.sock';
        $self->{proxy} = Referral::Test::Proxy->new(
            listen => $t->dir() . '/proxy.sock', to => $t->redis()->path());
    }

    $self->{oracle} = Referral::Test::Oracle->new(dir => $t->dir(),
        port => $t->port('http'), codes => [ sort keys %CODES ],
        off => [ 'OFF' ],
        map { $_ => $arg{$_} } grep { exists $arg{$_} }
            qw(headers args unknown noise));

    $t->nginx($self->conf()) unless $arg{nginx_later};
    $self->{drops_before} = $self->drops() // 0 unless $arg{nginx_later};

    $self->{worker} = $t->worker(%{ $self->worker_conf() },
        env => $arg{worker_env} // {}, start_later => 1);

    $self->{worker}->start() unless $arg{start_later};

    return;
}


sub t      { $_[0]{t} }
sub pg     { $_[0]{pg} }
sub worker { $_[0]{worker} }
sub proxy  { $_[0]{proxy} }
sub redis  { $_[0]{t}->redis() }
sub oracle { $_[0]{oracle} }


# settings of a worker for this stand

sub worker_conf {
    my ($self, %more) = @_;

    # few rows: a worker that is behind has read further than it committed

    return { journal => $self->{journal}, batch_wait => '50ms',
             batch_rows => 500,
             postgres => $self->{pg}->conninfo(user => 'edge',
                                               db => $self->{db}),
             %{ $self->{worker_settings} // {} }, %more };
}


# (sql): one value of this stand's database

sub value {
    my ($self, $sql) = @_;
    return $self->{pg}->value($sql, db => $self->{db});
}


sub rows {
    my ($self, $sql) = @_;
    return $self->{pg}->rows($sql, db => $self->{db});
}


sub set_codes {
    my ($self) = @_;

    my $redis = $self->redis();

    $redis->code($_, %{ $CODES{$_} }) for sort keys %CODES;
    $redis->code('OFF', url => 'https://example.com/', state => 'inactive');
}


# arguments for nginx() and reconfigure()

sub conf {
    my ($self, %more) = @_;

    my %arg = (%$self, %more);
    my $env = join('', map { "env $_=$arg{env}{$_};\n" }
                       sort keys %{ $arg{env} // {} });
    my $redis = $arg{redis_url} // '%%REDIS%%';
    my $journal = $arg{journal_args} // 'size=64m segment=256k';

    return (cookie => 1, status => 1, workers => $arg{workers} // 2,
            env => $arg{process_env} // {},
            main => $env . ($arg{main} // ''), http => qq{
    referral_redis $redis timeout=100ms;
    referral_zone 1m valid=500ms invalid=500ms stale=10m;
    referral_journal $self->{journal} $journal;
    keepalive_requests 200;
    large_client_header_buffers 8 72k;
    } . ($arg{http} // ''), server => q{
        referral on;
        add_header X-Click $referral_click_id always;
        add_header X-Verdict $referral_verdict always;
        location /r/ { referral_redirect; }
        location / { return 200 "page\n"; }
    } . ($arg{server} // ''));
}


sub reconfigure {
    my ($self, %more) = @_;

    $self->{$_} = $more{$_} for keys %more;

    return $self->{t}->reconfigure($self->conf());
}


#
# load
#

sub load {
    my ($self, %arg) = @_;

    $self->{oracle}->start(%arg);
    $self->{loaded} = 1;

    return $self;
}


sub calm {
    my ($self) = @_;

    $self->{oracle}->stop() if delete $self->{loaded};

    return $self;
}


# sum of the dropped counters, undef when nginx does not answer

sub drops {
    my ($self) = @_;

    my $text = eval { $self->{t}->status() } // '';
    my @drops = $text =~ /^referral_dropped_total\{[^}]*\} (\d+)/mg or return undef;
    my $sum = 0;

    $sum += $_ for @drops;

    return $sum;
}


#
# faults
#

# a process of nginx: (pid), SIGKILL; the master starts another

sub kill_nginx_worker {
    my ($self, $pid) = @_;
    return $self->{t}->kill_worker($pid);
}


# SIGKILL to the master and to all workers, or to the master alone

sub kill_nginx {
    my ($self, %arg) = @_;

    my $t = $self->{t};
    my @workers = $t->workers();

    $t->allow(qr/open socket|still could not bind/);
    $t->{nginx}{expected} = 1;
    $t->{nginx}->kill9();

    # orphans go on until they are ended

    return @workers if $arg{master};

    kill('KILL', @workers);
    $t->wait_for(sub { !grep { Referral::Test::alive($_) } @workers }, 5);

    return;
}


sub pause_nginx_workers {
    my ($self) = @_;

    my @pids = $self->{t}->workers();
    kill('STOP', @pids);

    return @pids;
}


#
# the end of faults
#

# last record of each stream in the journals, by uuid

sub streams {
    my ($self) = @_;

    my %last;

    for my $journal (@{ $self->{journals} }) {
        next unless -d $journal;

        my $r = $self->{t}->referralctl('journal', 'list', '--json',
                                        '--journal', $journal);
        my $list = eval { JSON::PP->new()->utf8()->decode($r->{output}) };

        die "referralctl journal list: $r->{output}\n"
            unless ref($list) eq 'ARRAY';

        for (@$list) {
            next if $_->{state} eq 'aside';

            (my $id = $_->{stream}) =~ tr/-//d;
            $last{$id} = $_->{last}
                if $_->{last} > ($last{$id} // 0);
        }
    }

    return \%last;
}


# What the worker has not brought to Postgres yet, as a sentence; '' when
# nothing is left.

sub left {
    my ($self) = @_;

    my $last = eval { $self->streams() };
    return "the journal cannot be listed: $@" unless $last;

    my $r = $self->{pg}->try(q{ SELECT replace(stream_id::text, '-', ''), seq
                                   FROM referral.ingest_cursor }, $self->{db});
    return "Postgres does not answer: $r->{error}" if $r->{status};

    my %seq = map { $_->[0] => $_->[1] } @{ $r->{rows} };
    my @left = grep { $last->{$_} > ($seq{$_} // 0) } keys %$last;

    return '' unless @left;

    return join(', ', map { "stream $_: $last->{$_} in the journal, "
                            . ($seq{$_} // 0) . ' in Postgres' } @left);
}


# 0 after the limit

sub drain {
    my ($self, $limit) = @_;

    my $end = time() + ($limit // 60);

    for ( ;; ) {
        $self->{left} = $self->left();
        return 1 if $self->{left} eq '';
        return 0 if time() > $end;
        sleep(0.15);
    }
}


# Ends the load, waits until all is in Postgres, judges, and tries one more
# click.

sub settle {
    my ($self, %arg) = @_;

    $self->calm();

    my $dropped;

    if ($arg{counters} // 1) {
        $dropped = $self->drops();
        $dropped -= $self->{drops_before} if defined $dropped;
    }

    my $start = time();
    my $drained = $self->drain($arg{drain});
    my $seconds = time() - $start;

    my $v = $self->{oracle}->judge($self->{pg}, db => $self->{db}, %arg,
                                   dropped => $dropped);

    unshift @{ $v->{wrong} }, "not in Postgres after "
                              . ($arg{drain} // 60) . " s: $self->{left}"
        unless $drained;

    $v->{drained} = $seconds;
    $v->{dropped} = $dropped;

    unless ($arg{no_fresh}) {
        push @{ $v->{wrong} }, "a fresh click does not arrive: $_"
            for grep { $_ } $self->fresh();
    }

    return $v;
}


# one more click; what is wrong with it, '' if nothing

sub fresh {
    my ($self) = @_;

    my ($id, $found);

    $self->{t}->wait_for(sub {
        $id = $self->{oracle}->ask('/r/CODE1');
        return length($id);
    }, 10) or return 'no id is given out';

    $found = $self->{t}->wait_for(sub {
        my $r = $self->{pg}->try("SELECT 1 FROM referral.interaction
            WHERE id = '$id' UNION ALL SELECT 1 FROM referral.quarantine
            WHERE data ->> 'id' = '$id'::uuid::text", $self->{db});
        return $r->{status} == 0 && ($r->{rows}[0][0] // '') eq '1';
    }, 10);

    return $found ? '' : "its id is $id";
}


# ends everything; what was wrong in logs and processes

sub close {
    my ($self) = @_;

    my $t = $self->{t};

    eval { $self->calm() };
    $t->stop_all();
    $self->{proxy}->stop() if $self->{proxy};

    my @problems = $t->problems();

    $self->{pg}->try("DROP DATABASE $self->{db} WITH (FORCE)", 'postgres')
        if $self->{db} =~ /^stand/;

    $t->finish();

    return @problems;
}


# the shared Postgres goes, too

sub end {
    return unless $base;

    $base->stop_all();
    my @problems = $base->problems();
    $base->finish();
    ($base, $shared) = ();

    return @problems;
}


1;
