// Prints the IPv4 addresses of a name, as the C library that it is built with finds them.
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv) {
    struct addrinfo wanted, *found;
    memset(&wanted, 0, sizeof wanted);
    wanted.ai_family = AF_INET;
    wanted.ai_socktype = SOCK_STREAM;
    if (argc != 2) return 2;
    int error = getaddrinfo(argv[1], NULL, &wanted, &found);
    if (error) {
        fprintf(stderr, "%s: %s\n", argv[1], gai_strerror(error));
        return 1;
    }
    for (; found; found = found->ai_next) {
        char text[INET_ADDRSTRLEN];
        puts(inet_ntop(AF_INET, &((struct sockaddr_in *)found->ai_addr)->sin_addr, text, sizeof text));
    }
    return 0;
}
