package Referral::Test::Publish;

# Copyright (C) The nginx referral module authors

=head1 NAME

Referral::Test::Publish - a database, a Redis and publishers, to be broken

=head1 SYNOPSIS

    my $p = Referral::Test::Publish->new(codes => 60);
    my $w = $p->worker('a');               # settings and env may follow

    $p->sql("UPDATE referral.code SET campaign = 'two'");
    is_deeply([ $p->settle() ], [], 'Redis has what the database says');

=head1 DESCRIPTION

The database is one of its own in the Postgres that all stands of a process
share; with own => 1 it has a server of its own, which can be stopped and
copied.  Options: codes (their number, CODE1 ...; in one active program),
redis (arguments of Referral::Test->redis()).

settle() waits until a request to publish is answered and returns what differs
then; differs() compares at once: every field of every code, that nothing else
is there, and that referral:publisher and referral:off are as they must be.

=cut

use strict;
use warnings;

use IO::Select;
use IO::Socket::UNIX;
use Time::HiRes qw(sleep time);

use Referral::Test;
use Referral::Test::Stand;


my $number = 0;


sub new {
    my ($class, %arg) = @_;

    my $self = bless { codes => 60, %arg }, $class;

    if ($arg{own}) {
        $self->{t} = Referral::Test->new();
        $self->{pg} = $self->{t}->postgres(%{ $arg{pg} // {} });
        $self->{db} = 'referral';

    } else {
        $self->{pg} = Referral::Test::Stand::shared();
        $self->{t} = Referral::Test->new();
        $self->{db} = "publish$$" . '_' . ++$number;
        $self->{pg}->rows("CREATE DATABASE $self->{db} TEMPLATE referral",
                          db => 'postgres');
    }

    $self->{redis} = $self->{t}->redis(%{ $arg{redis} // {} });

    mkdir($self->{t}->dir() . '/journal');

    $self->sql("
        SELECT referral.organisation_create('org', 'An organisation');
        SELECT referral.program_create(1, 'main', 'A program',
            '{\"landing_url\": \"https://example.com/main\"}');
        SELECT referral.program_set_status(1, 'active');
        INSERT INTO referral.code (organisation_id, program_id, code)
            SELECT 1, 1, 'CODE' || g FROM generate_series(1, $self->{codes}) g;
    ");

    return $self;
}


sub t     { $_[0]{t} }
sub pg    { $_[0]{pg} }
sub redis { $_[0]{redis} }


sub sql {
    my ($self, $sql) = @_;
    return $self->{pg}->rows($sql, db => $self->{db});
}


sub value {
    my ($self, $sql) = @_;
    return $self->{pg}->value($sql, db => $self->{db});
}


# (name, settings and env): a worker with a journal of its own, started

sub worker {
    my ($self, $name, %arg) = @_;

    my $journal = $self->{t}->dir() . "/journal-$name";
    mkdir($journal);

    return $self->{t}->worker(name => $name, journal => $journal,
        postgres => $self->{pg}->conninfo(user => 'edge', db => $self->{db})
                    . " application_name=worker-$name",
        redis => $self->{redis}->url(), %arg);
}


# waits for a word in a worker's log, so many times

sub logged {
    my ($self, $w, $pattern, $times, $timeout) = @_;

    return $self->{t}->wait_for(sub {
        my @hits = $w->output() =~ /$pattern/g;
        @hits >= ($times // 1);
    }, $timeout // 10);
}


# waits until the process is stopped, by itself

sub stopped {
    my ($self, $w) = @_;

    return $self->{t}->wait_for(sub {
        open(my $fh, '<', '/proc/' . $w->pid() . '/stat') or return 0;
        return <$fh> =~ /\) T /;
    }, 10);
}


# ends the sessions of one worker, as a broken network does

sub cut {
    my ($self, $name) = @_;

    $self->sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                    WHERE application_name = 'worker-$name'");
}


my @fields = qw(url state not_before expires code_id program_id referrer_id
                campaign rules);


# a hash of CODE => { field => value }, as the database has it

sub wanted {
    my ($self) = @_;

    my %codes;

    for my $row ($self->sql('SELECT code, ' . join(', ', @fields)
                            . ' FROM referral.code_published')) {
        my ($code, @values) = @$row;
        next unless defined $code && length($code);

        my %h;
        @h{@fields} = @values;
        delete @h{ grep { !defined $h{$_} } @fields };
        $codes{$code} = \%h;
    }

    return \%codes;
}


sub found {
    my ($self, @hand) = @_;

    my %hand = map { ("referral:code:$_" => 1) } @hand;

    my $redis = $self->{redis};
    my ($cursor, %seen, %codes) = (0);

    do {
        my $r = $redis->cmd('SCAN', $cursor, 'COUNT', 1000);

        $cursor = $r->[0];
        $seen{$_} = 1 for @{ $r->[1] };
    } while ($cursor ne '0');

    for my $key (sort keys %seen) {
        next if $hand{$key};
        my ($code) = $key =~ /^referral:code:(.*)/;
        $codes{$code // $key} = defined $code
            ? { @{ $redis->cmd('HGETALL', $key) } } : {};
        utf8::decode($_) for values %{ $codes{$code // $key} };
    }

    return \%codes;
}


# (codes that were written by hand): what is not so

sub differs {
    my ($self, @hand) = @_;

    my ($want, $have) = ($self->wanted(), $self->found(@hand));
    my $redis = $self->{redis};
    my @wrong;
    my %p = @{ $redis->cmd('HGETALL', 'referral:publisher') };

    push @wrong, 'referral:publisher has '
                 . join(' ', map { "$_=$p{$_}" } sort keys %p)
        unless join(' ', sort keys %p) eq 'batch fence generation ready'
               && $p{ready} eq '1';

    # nothing else, whatever its name: nothing personal could be there

    delete $have->{'referral:publisher'};

    for my $code (sort keys %$want) {
        my $h = delete $have->{$code};

        if (!$h) {
            push @wrong, "$code is not there";
            next;
        }

        push @wrong, "$code has no version"
            unless (delete $h->{version} // '') =~ /^[1-9]\d*$/;

        for (@fields) {
            my ($a, $b) = ($want->{$code}{$_}, delete $h->{$_});

            push @wrong, "$code: $_ is " . ($b // 'absent') . ', not '
                         . ($a // 'absent')
                if ($a // "\0") ne ($b // "\0");
        }

        push @wrong, "$code has $_" for sort keys %$h;
    }

    push @wrong, "$_ is there" for sort keys %$have;

    # one row for what Redis has

    my ($row) = $self->sql('SELECT batch, pending, ready
                                FROM referral.publications
                                WHERE generation = ' . ($p{generation} // 0));

    push @wrong, 'Postgres has batch ' . ($row->[0] // 'none') . ', Redis '
                 . ($p{batch} // 'none')
        unless ($row->[0] // '') eq ($p{batch} // 'none');
    push @wrong, 'something is pending' if $row->[1];

    return @wrong > 8 ? (@wrong[0 .. 7], '... ' . @wrong) : @wrong;
}


# waits until all that was committed is published, then compares

sub settle {
    my ($self, @hand) = @_;

    # what asks wakes the publisher: not before it had the time to look

    my $id = $self->value('SELECT referral.publish_request()');
    my $run_id = ($self->{redis}->cmd('INFO', 'server')
                  =~ /^run_id:(\w+)/m)[0];

    my $done = $self->{t}->wait_for(sub {
        return ($self->value("SELECT bool_or(done)
                                 FROM referral.publish_answers($id)
                                 WHERE redis_run_id = '$run_id'") // '')
               eq 't';
    }, 10);

    return ('no publisher answered', $self->differs(@hand)) unless $done;

    # an answer is given before the last look at referral:off

    my @wrong;

    $self->{t}->wait_for(sub { @wrong = $self->differs(@hand); !@wrong }, 1);

    return @wrong;
}


# (sub) runs it with a subscription: the messages that came meanwhile

sub messages {
    my ($self, $sub, $wait) = @_;

    my $sock = IO::Socket::UNIX->new(Peer => $self->{redis}->path())
        or die "connect: $!\n";

    syswrite($sock, "SUBSCRIBE referral:invalidate\r\n");

    my ($text, $told) = ('', 0);
    my $select = IO::Select->new($sock);

    while ($select->can_read($told ? $wait // 0.4 : 5)) {
        last unless sysread($sock, $text, 65536, length($text));

        if (!$told && $text =~ /:1\r\n/) {
            $told = 1;
            $sub->();
        }
    }

    return $text =~ /\r\nmessage\r\n\$\d+\r\n[^\r]+\r\n\$\d+\r\n([^\r]+)/g;
}


sub close {
    my ($self) = @_;

    my $t = $self->{t};
    my @problems;

    $t->stop_all();
    push @problems, $t->problems();

    $self->{pg}->try("DROP DATABASE $self->{db} WITH (FORCE)", 'postgres')
        unless $self->{own};

    $t->finish();

    return @problems;
}


1;
